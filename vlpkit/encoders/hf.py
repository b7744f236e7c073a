"""Any transformers text model as an embed: widths from the size group, or an outside checkpoint by name or folder."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES as ENCODERS

from vlpkit.errors import AssemblyError, WeightsError, opaque_text
from vlpkit.layers.attention import causal_order
from vlpkit.types import Stream, TextInput


class TransformersText(nn.Module):
    """A transformers encoder behind the embed contract; opaque, so both taps of its encoder agree.

    Args:
        kind: transformers model type, such as roberta, albert, deberta-v2, t5 (its encoder) or gpt2; shapes the model when `pretrained` is None.
        dim: D, the width.
        depth: number of layers.
        heads: attention heads.
        vocab: V, number of word ids.
        length: longest sequence in tokens.
        pretrained: name or local folder of a checkpoint, which then decides every width.
        order: causal for a language model, whose words read only what stands before them.

    Raises:
        WeightsError: the checkpoint cannot be had, or its vocabulary is smaller than the tokenizer's.
    """

    def __init__(
        self, kind: str, *, dim: int, depth: int, heads: int, vocab: int, length: int, pretrained: str | None = None, order: Literal["causal"] | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.causal = kind, order == "causal"
        if pretrained is None:
            config = AutoConfig.for_model(kind)
            # RoBERTa and its kin count positions from the padding id on, hence the two spare rows.
            wanted = {"hidden_size": dim, "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": 4 * dim, "d_ff": 4 * dim,
                      "d_kv": dim // heads, "vocab_size": vocab, "max_position_embeddings": length + 2, "embedding_size": dim, "pad_token_id": 0}
            for key, value in wanted.items():
                if hasattr(config, key):
                    setattr(config, key, value)
            self.net: PreTrainedModel = _class(config).from_config(config)
        else:
            try:
                meta = torch.get_default_device().type == "meta"
                config = AutoConfig.from_pretrained(pretrained, trust_remote_code=False)  # left open, a terminal would be asked
                self.net = _class(config).from_config(config) if meta else _class(config).from_pretrained(pretrained, trust_remote_code=False)
            except (OSError, ValueError, UnpicklingError) as error:  # the last of weights that are a program
                raise WeightsError(
                    f"model.text.embed.pretrained: {pretrained!r} cannot be had ({str(error).splitlines()[0]}).\n"
                    "  Give a local folder (model.text.embed.pretrained=/path/to/folder) or start from random weights (pretrained=null)."
                ) from error
            if self.net.get_input_embeddings().num_embeddings < vocab:
                self.net.resize_token_embeddings(vocab)
        if getattr(self.net, "pooler", None) is not None:
            self.net.pooler = None  # an unread pooler would be a parameter that no objective reaches
        self.dim = int(self.net.config.hidden_size)
        self.word = self.net.get_input_embeddings()  # the word table (V, D), where ties with output heads look for it

    def forward(self, given: TextInput) -> Stream:
        """(B, N) ids to a stream (B, N, D) of the part w.

        Raises:
            AssemblyError: the text has an order, and every word of such a model would have read what follows it.
        """
        if given.order is not None:
            raise AssemblyError(opaque_text(self.kind))
        if given.ids.is_meta:
            # Some of these models look at values, and the meta device has none: the right shape, reached by every parameter.
            y = torch.stack([p.sum() for p in self.net.parameters()]).sum().expand(*given.ids.shape, self.dim)
        else:
            y = self.net(input_ids=given.ids, attention_mask=given.mask.long()).last_hidden_state
        n = given.ids.shape[1]
        return Stream(y, given.mask, (("w", n),), causal_order(len(given), n, given.ids.device) if self.causal else None)


def _class(config: PretrainedConfig) -> Any:
    """Of models with a decoder, the encoder alone; of the others, the model without a head."""
    return AutoModelForTextEncoding if config.model_type in ENCODERS else AutoModel
