"""Numbers from what was found: distances between images, and intervals over trials.

They know nothing of how an image was found, and decide nothing: claims do that, in `book`.
"""
