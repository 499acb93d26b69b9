"""The index of the networks: one a file, by the name that `--net-type` knows it by.

`layer.py` says how they are called. `layer.step(x_t, state, drive_t)` is one step, and its
equations; the layer itself gives the same as the loop of its steps, and is faster.
"""

from NetworkCreation.anru import ANRU
from NetworkCreation.eurnn import EURNN
from NetworkCreation.exprnn import ExpRNN
from NetworkCreation.gru import GRU
from NetworkCreation.lstm import LSTM
from NetworkCreation.nnrnn import NonNormalRNN
from NetworkCreation.rnn import RNN

NETWORKS = {
    "RNN": RNN,
    "ANRU": ANRU,
    "LSTM": LSTM,
    "GRU": GRU,
    "expRNN": ExpRNN,
    "nnRNN": NonNormalRNN,
    "EURNN": EURNN,
}
