"""One plain function a stage: committed input in, an outcome out; no Prefect here."""
