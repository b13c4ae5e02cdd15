"""Where and how the MAX graphs compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from max.dtype import DType
from max.graph import DeviceRef, Weight

from asrgate.backends.max_graph import bfloat16_ops, encoder_ops, int8_ops, processor, split_ops


@dataclass(frozen=True)
class Place:
    """Where and how the graphs compute.

    Attributes:
        device: the device of weights and activations.
        dtype: the type of activations, and of all weights without a type of their own below.
        encoder_dtype: the type of the encoder's factors. On the CPU, bfloat16 factors are multiplied as such
            and summed in `dtype`.
        step_dtype: the type of the matrices read at every decoding step. On the CPU they may stay in the
            checkpoint's float16: this is exact, products are summed in `dtype`, and half as much is read.
            int8 has one factor per row.
        cross_dtype: the type of the cross-attention's keys and values.
        splits: whether the encoder's products in float32 are of bfloat16 parts: see split_ops.
        multiplies_int8: whether queries, keys and both products of the MLP in the encoder's blocks are of
            int8: see int8_ops. The rest of the encoder stays in `encoder_dtype`.
        has_kernels: whether the products are our Mojo kernels for the CPU. If they are MAX's own, as on a
            GPU, the decoder keeps its state on the device: see asrgate.backends.max_graph.device_decoder.
    """

    device: DeviceRef
    dtype: DType
    encoder_dtype: DType
    step_dtype: DType
    cross_dtype: DType
    has_kernels: bool
    splits: bool = False
    multiplies_int8: bool = False

    @property
    def panel_ops(self) -> Any:
        """The module with our products and attention of many rows in `encoder_dtype`."""
        if self.encoder_dtype == DType.bfloat16:
            return bfloat16_ops
        return split_ops if self.splits else encoder_ops

    def panel_weight(self, n_out: int, n_in: int, *, int8: bool = False) -> Weight:
        """Return the weight of a product of many rows, laid out in panels."""
        panels, width = -(-n_out // encoder_ops.PANEL), encoder_ops.PANEL
        if int8:
            quads = (panels, int8_ops.whole_depth(n_in) // 4, width, 4)
            return Weight("weight", DType.int8, quads, device=self.device)
        if self.panel_ops is bfloat16_ops:
            return Weight("weight", DType.bfloat16, (panels, n_in // 2, width, 2), device=self.device)
        if self.splits:
            shape = (2, panels, split_ops.whole_depth(n_in) // 2, width, 2)
            return Weight("weight", DType.bfloat16, shape, device=self.device)
        return Weight("weight", self.encoder_dtype, (panels, n_in, width), device=self.device)


def place(device: Any, precision: str, halves: bool) -> Place:
    """Return what a precision means on a device.

    Args:
        device: a max.graph.DeviceRef.
        precision: as the variant's name states it, without "+trim".
        halves: whether the checkpoint is stored in float16.
    """
    if not device.is_cpu():
        dtype = DType[precision]
        return Place(device, dtype, dtype, dtype, dtype, has_kernels=False)
    whole, half = DType.float32, DType.bfloat16
    if precision == "float32":
        step = DType.float16 if halves else whole
        splits = halves and processor.has_tiles()
        return Place(device, whole, whole, step, whole, has_kernels=True, splits=splits)
    step_16 = DType.float16 if halves else half  # float16 holds a checkpoint of float16 exactly
    int8 = precision == "int8"
    return Place(
        device,
        whole,
        half,
        DType.int8 if int8 else step_16,
        half,
        has_kernels=True,
        multiplies_int8=int8 and processor.multiplies_bytes(),
    )
