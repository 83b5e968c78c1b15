from qscore._validate import QScoreError as QScoreError
from qscore.core import activation_rates as activation_rates
from qscore.core import discriminative_features as discriminative_features
from qscore.core import q_score as q_score
from qscore.core import q_score_v1 as q_score_v1
from qscore.embedding import embed as embed
from qscore.encoders import Encoder as Encoder
from qscore.encoders import load_encoder as load_encoder
from qscore.estimator import DiscriminativeFeatureSelector as DiscriminativeFeatureSelector
from qscore.estimator import Drift as Drift
from qscore.estimator import QScorer as QScorer
from qscore.evaluate import evaluate_scores as evaluate_scores
from qscore.kernels import Scan as Scan
from qscore.kernels import scan as scan
from qscore.metrics import representation_metrics as representation_metrics
from qscore.scoring import compress as compress
from qscore.scoring import count_features as count_features
from qscore.scoring import load_scorer as load_scorer
from qscore.scoring import merge_features as merge_features
from qscore.scoring import score as score
from qscore.ssl import pretrain as pretrain

__version__: str
