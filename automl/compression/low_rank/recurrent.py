"""SVD of the matrix with which a recurrent layer reads its input.

W_ih x = U (V x) is a linear layer without bias before the recurrent layer whose input matrix is U: the very same
computation, and plain layers. Prabhavalkar et al., "On the compression of recurrent neural networks with an application
to LVCSR acoustic modeling for embedded speech recognition", ICASSP 2016, factor recurrent networks so. The matrix W_hh
they factor, too, has no such form: torch's LSTM and GRU hold one matrix inside the recurrence (the projection of an
LSTM is another network, whose output is the projected state).
"""

import copy

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from automl.compression.low_rank.base import as_ranks, factor_matrix
from automl.compression.low_rank.layer import dense_spec
from search_spaces.errors import InputError, did_you_mean
from search_spaces.factorisations import Rank, factors

INPUT = "weight_ih_l0"


class FactoredRecurrent(nn.Sequential):
    """A linear layer "0" and the recurrent layer "1" that reads what it gives; called as the recurrent layer is."""

    def forward(self, input: Tensor | PackedSequence, hx: object = None) -> object:
        """(outputs, last states), as torch's recurrent layers give them.

        Args:
            input: [time, batch, features], [batch, time, features] where batch_first, or packed.
            hx: initial states, zeros where None.
        """
        reduce, cell = self
        if isinstance(input, PackedSequence):
            return cell(input._replace(data=reduce(input.data)), hx)
        return cell(reduce(input), hx)


def factor_recurrent_input(
    module: nn.RNNBase, rank: int | Rank, *, matrix: str = INPUT, must_save: bool = True
) -> FactoredRecurrent:
    """A recurrent layer with the matrix that reads its input of low rank; all other matrices stay.

    Args:
        module: LSTM, GRU or RNN of one direction, which stays untouched. Of several layers it is the first that reads
            the input; "weight_ih_l0" is shaped [gates * hidden, features].
        rank: 1 to min(gates * hidden, features).
        matrix: name of the parameter; every other than "weight_ih_l0" is refused with the reason.
        must_save: whether there have to be fewer weights than before.

    Returns:
        A module with tensors of its own, called as the layer is.

    Raises:
        InputError: another layer or matrix, two directions, weights that are not finite, or see
            `search_spaces.factorisations.factors`.
    """
    if not isinstance(module, nn.LSTM | nn.GRU | nn.RNN):
        raise InputError(f"what is factored here is an LSTM, GRU or RNN, got {type(module).__name__}")
    weights = {name: value for name, value in module.named_parameters() if name.startswith("weight_")}
    if matrix not in weights:
        raise InputError(f"the recurrent layer has no matrix {matrix!r}{did_you_mean(matrix, weights)}")
    weight = weights[matrix]
    ranks = as_ranks(rank)
    factors(dense_spec(weight, matrix), "svd", ranks, must_save=must_save)
    if module.bidirectional:
        raise InputError(
            f"the matrix {matrix!r} has no factorisation: both directions read the input, and a linear layer in front "
            "would be before both; leave it whole"
        )
    left, right = factor_matrix(weight, ranks[0])
    reduce = nn.Linear(module.input_size, ranks[0], bias=False, device="meta")
    reduce.weight = nn.Parameter(right, requires_grad=weight.requires_grad)
    cell = copy.deepcopy(module)
    cell.input_size = ranks[0]
    setattr(cell, matrix, nn.Parameter(left, requires_grad=weight.requires_grad))
    cell.flatten_parameters()
    return FactoredRecurrent(reduce, cell).train(module.training)
