"Everything a user needs: `from fastai_bnfold.all import *`"
from .norms import register_bn
from .ops import register_op
from .plan import FoldError, FoldEntry, FoldPlan
from .report import FoldReport
from .collapse import Collapsed
from .fold import BNFolder
from .bench import bench, Timings
from .engines import EngineTimings, engines
from .learner import BNFoldCallback
from .deploy import ExportError, ExportReport

__all__ = ['FoldError', 'FoldEntry', 'FoldPlan', 'register_bn', 'register_op', 'FoldReport', 'BNFolder', 'Collapsed',
           'bench', 'engines', 'EngineTimings', 'Timings', 'BNFoldCallback', 'ExportError', 'ExportReport']
