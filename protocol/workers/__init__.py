"""Items of a run on many devices and machines: Ray starts the worker processes, the driver alone writes the folder.

An item is a method on an episode, or a part of the images of a prediction. `desk`,
`options` and `worker` load neither torch nor Ray.
"""
