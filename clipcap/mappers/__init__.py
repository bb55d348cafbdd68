"""One file per mapper: an embedding in, the prefix that the language model reads out.

A file here has `Settings` and `Mapper(settings, dim_clip, prefix_length, dim_lm)`, a module that
turns `embedding_BD` into `prefix_BPE` and draws its first weights from torch's global generator.
"""
