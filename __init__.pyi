from .protocol.classifier import Classifier as Classifier

__version__: str
