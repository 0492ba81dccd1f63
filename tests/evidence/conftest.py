import pytest
from matplotlib.figure import Figure


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written during a test, by their titles."""
    figures = {}
    save = Figure.savefig

    def savefig(figure, *args, **options):
        figures[figure.get_label()] = figure
        return save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures
