"""From files, folders and hub names to tokenised rows and the batches made of them."""
