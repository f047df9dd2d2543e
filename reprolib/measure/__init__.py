"""Numbers from what was found: distances of images, intervals over trials. They attack nothing and show nothing."""
