"""A checkpoint in the formats that engines read (CTranslate2, ggml, transformers), kept in the cache."""
