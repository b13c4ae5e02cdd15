"""Custom operations of the MAX graphs; custom_ops.py, encoder_ops.py, bfloat16_ops.py and device_ops.py call them."""
