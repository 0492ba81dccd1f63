"""The instruction-aware gate."""

import pytest
import torch
from torch import nn

from pave.fusion.gate import InstructionGate
from pave.tokens import QuestionTokens


def question(valid, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return QuestionTokens(torch.randn(*valid.shape, 6, generator=generator), valid)


def test_fresh_gate_is_exactly_one():
    gate = InstructionGate(6, 8)
    tokens = torch.randn(2, 3, 4, 8) * 100
    assert torch.equal(gate(tokens, question(torch.ones(2, 5, dtype=torch.bool))), torch.ones(2, 3, 4, 1))


def trained():
    torch.manual_seed(1)
    gate = InstructionGate(6, 8)
    nn.init.normal_(gate.to_scalar.weight)
    return gate


def test_gate_depends_on_question_and_token_and_stays_between_0_and_2():
    gate, tokens = trained(), torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(2, 5, dtype=torch.bool)
    value = gate(tokens, question(valid))
    assert value.shape == (2, 3, 4, 1)
    assert ((value > 0) & (value < 2)).all() and value.std() > 0.1
    assert not torch.allclose(value, gate(tokens, question(valid, seed=5)))
    assert not torch.allclose(value, gate(tokens.flip(-1), question(valid)))


def test_padding_of_the_prompt_is_not_read():
    gate, tokens = trained(), torch.randn(1, 2, 3, 8)
    asked = question(torch.tensor([[True, False, True, False]]))
    value = gate(tokens, asked)
    asked.embeds_BLE[0, 1] = torch.nan
    asked.embeds_BLE[0, 3] = 1e9
    assert torch.equal(value, gate(tokens, asked))
    short = QuestionTokens(asked.embeds_BLE[:, [0, 2]], torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(value, gate(tokens, short))


def test_prompt_without_text_is_no_nan():
    gate = trained()
    assert torch.isfinite(gate(torch.randn(1, 2, 3, 8), question(torch.zeros(1, 4, dtype=torch.bool)))).all()


@pytest.mark.parametrize("llm_width", [896, 3584])
def test_gate_is_small(llm_width):
    with torch.device("meta"):
        gate = InstructionGate(llm_width, 256)
    assert gate.from_question.out_features <= 64
    assert sum(p.numel() for p in gate.parameters()) * 2 < 0.6e6
