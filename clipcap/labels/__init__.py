"""Zero-shot labels: what images are labelled with, in words or fitted, and how a score is made.

`sets` reads label sets, `bank` turns one into a vector and an affine rule per label, `scoring`
turns stored embeddings and a bank into scores, `tree` adds them up along a taxonomy.
"""
