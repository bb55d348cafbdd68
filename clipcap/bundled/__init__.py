"""What makes the bundled model: drawn scenes in, a tiny CLIP and a tiny captioner out.

It knows only picture-book scenes; captions of photographs need a real model. Nothing else in
`clipcap` imports from here: `clipcap.models` reads the folders as it reads anybody's.
"""
