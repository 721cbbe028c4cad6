"""Recurrent classifiers: the rows of an image, from top to bottom, are a sequence.

A text whose characters are one-hot rows is such an image too, so the same networks learn which character comes next.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

Size = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Cell = Literal["lstm", "gru"]

_CELLS: dict[Cell, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class RowReader(nn.Module):
    """Reads rows with a recurrent layer, then classifies what it holds after the last one.

    Args:
        features: entries of a row, all channels together.
        classes: number of classes.
        cell: the recurrent layer, under whose name it stands in the network.
        hidden: hidden units of each layer.
        layers: how many are stacked.
        bidirectional: whether rows are read from below, too.
        embedding: features that a row is first mapped to, None where it is read as it is.
        dropout: share of the values between layers, and before the classifier, that training drops.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        cell: Cell,
        hidden: int,
        layers: int = 1,
        bidirectional: bool = False,
        embedding: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.cell = cell
        self.embedding = nn.Identity() if embedding is None else nn.Linear(features, embedding, bias=False)
        recurrent = _CELLS[cell](
            features if embedding is None else embedding,
            hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.add_module(cell, recurrent)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden * (2 if bidirectional else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] -> logits [N, classes]."""
        rows = x.transpose(1, 2).flatten(2)
        read, _ = getattr(self, self.cell)(self.embedding(rows))
        return self.fc(self.dropout(read[:, -1]))  # type: ignore[no-any-return]


def lstm(
    *,
    classes: int,
    input_shape: tuple[int, int, int],
    hidden: Size = 128,
    layers: Size = 1,
    bidirectional: bool = False,
    dropout: Share = 0.0,
) -> nn.Module:
    """LSTM (Hochreiter & Schmidhuber 1997) that reads an image row by row."""
    return RowReader(input_shape[0] * input_shape[2], classes, "lstm", hidden, layers, bidirectional, None, dropout)


def gru(
    *,
    classes: int,
    input_shape: tuple[int, int, int],
    hidden: Size = 128,
    layers: Size = 1,
    bidirectional: bool = False,
    dropout: Share = 0.0,
) -> nn.Module:
    """GRU (Cho et al. 2014) that reads an image row by row."""
    return RowReader(input_shape[0] * input_shape[2], classes, "gru", hidden, layers, bidirectional, None, dropout)


def char_lm(
    *,
    classes: int,
    input_shape: tuple[int, int, int],
    cell: Cell = "lstm",
    embedding: Size = 32,
    hidden: Size = 128,
    layers: Size = 2,
    dropout: Share = 0.0,
) -> nn.Module:
    """Character language model: an embedding and stacked LSTMs (or GRUs) that tell the next character."""
    features = input_shape[0] * input_shape[2]
    return RowReader(features, classes, cell, hidden, layers, False, embedding, dropout)


__all__ = ["RowReader", "char_lm", "gru", "lstm"]
