"""Maps each `--net-type` to its layer class."""

from NetworkCreation.anru import ANRU
from NetworkCreation.eurnn import EURNN
from NetworkCreation.exprnn import ExpRNN
from NetworkCreation.gru import GRU
from NetworkCreation.lstm import LSTM
from NetworkCreation.nnrnn import NonNormalRNN
from NetworkCreation.rnn import RNN

NETWORKS = {"RNN": RNN, "ANRU": ANRU, "LSTM": LSTM, "GRU": GRU}
NETWORKS |= {"expRNN": ExpRNN, "nnRNN": NonNormalRNN, "EURNN": EURNN}
