"""One file per decoder: `prefix_NPE` in, the candidate captions of each image out, best first.

A file here has `Settings` and `decode(captioner, prefix_NPE, settings, *, slots, seeds)`, which
returns a list of `Candidate` for each image. A decoder sees the language model only through
`Decodable`, so it never learns which model it drives. `slots` is how many images are read at a
time and changes nothing but the speed; `seeds` has a number for each image, of its own whatever
stands beside it, for decoders that draw.
"""
