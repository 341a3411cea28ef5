from .base import Backbone as Backbone
from .open_clip import OpenCLIP as OpenCLIP
from .transformers import Transformers as Transformers
