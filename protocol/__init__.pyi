from .configuration import MethodConfig as MethodConfig
from .configuration import build_data as build_data
from .result import ProtocolResult as ProtocolResult
from .runner import run_protocol as run_protocol
from .settings import ProtocolSettings as ProtocolSettings
from .statistics import Interval as Interval
from .statistics import mean_interval as mean_interval
from .statistics import paired_difference as paired_difference
