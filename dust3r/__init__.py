"""Two images to pointmaps: model, losses, scene engine, training, inference, alignment."""
