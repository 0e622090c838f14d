"""What a draft will gain, before it is trained: from its acceptance and the costs of rounds."""
