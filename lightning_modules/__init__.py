"""The model half: one file per paper, each a direct subclass of LightningModule."""
