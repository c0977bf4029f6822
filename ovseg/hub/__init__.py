"""Models by name: the table of models, files from the Hugging Face hub, and folders that hold a whole segmenter."""
