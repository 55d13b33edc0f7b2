"""Transforms of images, speech and text: on the device where they are random, once on the host where they are not."""
