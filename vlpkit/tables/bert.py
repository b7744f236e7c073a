"""Text stacks as BERT names their weights; ALBEF, BLIP and transformers' BLIP use the same names, with cross-attention added."""

from __future__ import annotations

from vlpkit.rows import Row, parse


def embedding_rows(source: str, embed: str, *, segments: bool) -> list[str]:
    """Rows of the word, position and, where kept, segment tables."""
    segment = f"{embed}.segment.weight" if segments else "(dropped)"
    return [
        f"{source}embeddings.word_embeddings.weight        -> {embed}.word.weight | words",
        f"{source}embeddings.position_embeddings.weight    -> {embed}.position.weight | cut",
        f"{source}embeddings.token_type_embeddings.weight  -> {segment}",
        f"{source}embeddings.LayerNorm.*                   -> {embed}.norm.*",
        f"{source}embeddings.position_ids                  -> (dropped)",
    ]


def attention_rows(layer: str, ours: str) -> list[str]:
    """Rows of one self-attention with its norm."""
    return [
        f"{layer}.attention.self.{{query,key,value}}.*  -> {ours}.self.body.qkv.*",
        f"{layer}.attention.output.dense.*              -> {ours}.self.body.out.*",
        f"{layer}.attention.output.LayerNorm.*          -> {ours}.self.norm.*",
    ]


def cross_rows(layer: str, ours: str) -> list[str]:
    """Rows of one cross-attention with its norm."""
    return [
        f"{layer}.crossattention.self.query.*           -> {ours}.cross.body.q.*",
        f"{layer}.crossattention.self.{{key,value}}.*   -> {ours}.cross.body.kv.*",
        f"{layer}.crossattention.output.dense.*         -> {ours}.cross.body.out.*",
        f"{layer}.crossattention.output.LayerNorm.*     -> {ours}.cross.norm.*",
    ]


def ffn_rows(layer: str, ours: str) -> list[str]:
    """Rows of one feed-forward layer with its norm."""
    return [
        f"{layer}.intermediate.dense.*  -> {ours}.ffn.body.fc1.*",
        f"{layer}.output.dense.*        -> {ours}.ffn.body.fc2.*",
        f"{layer}.output.LayerNorm.*    -> {ours}.ffn.norm.*",
    ]


def layer_rows(layer: str, ours: str) -> list[str]:
    """Rows of a whole layer, cross-attention included where there is one."""
    return [*attention_rows(layer, ours), *cross_rows(layer, ours), *ffn_rows(layer, ours)]


def words_rows(source: str, head: str) -> list[str]:
    """Rows of the prediction head; its bias stands in files under two names."""
    return [
        f"{source}transform.dense.*      -> {head}.dense.*",
        f"{source}transform.LayerNorm.*  -> {head}.norm.*",
        f"{source}decoder.weight         -> {head}.out.weight | words",
        f"{source}decoder.bias           -> {head}.out.bias | words",
        f"{source}bias                   -> {head}.out.bias | words",
    ]


def stack_rows(source: str, *, lower: int | None, text: str = "text", fusion: str = "fusion") -> list[str]:
    """Rows of all layers; with `lower`, that many go to the text part and the others to the fusion."""
    if lower is None:
        return layer_rows(f"{source}encoder.layer.*", f"{text}.trunk.blocks.*")
    return [
        *layer_rows(f"{source}encoder.layer.0-{lower - 1}", f"{text}.trunk.blocks.*"),
        *layer_rows(f"{source}encoder.layer.{lower}-", f"{fusion}.w.blocks.*"),
    ]


def bert(
    *, source: str = "", part: str = "text", lower: int | None = None, head: str | None = None, segments: bool = False, decoder: str | None = None
) -> list[Row]:
    """transformers' BertModel (source "") or BertForMaskedLM (source "bert.").

    Args:
        source: what the keys start with, with its dot.
        part: our text part.
        lower: layers for the text part when the upper ones become a fusion, whose cross-attention stays fresh.
        head: our words head, such as heads.mlm; None drops theirs.
        segments: whether our embedding keeps the token types.
        decoder: our decoder whose self-attention starts from theirs, too, and then goes its own way (Li et al. 2022, section 3.2).
    """
    both = [f"{row} | also" for to in (f"{part}.trunk", f"{decoder}.w") for row in attention_rows(f"{source}encoder.layer.*", f"{to}.blocks.*")] if decoder else []
    others = [name for name in ("vision", "text", "decoder", "align", "heads") if name != part]
    words = words_rows("cls.predictions.", head) if head else ["cls.predictions.** -> (dropped)"]
    return parse([
        *both, *embedding_rows(source, f"{part}.embed", segments=segments), *stack_rows(source, lower=lower, text=part), *words,
        f"{source}pooler.** -> (dropped)", "cls.seq_relationship.** -> (dropped)", *(f"(fresh) -> {name}.**" for name in others),
        f"(fresh) -> {part}.trunk.blocks.*.cross.**", "(fresh) -> fusion.w.blocks.*.cross.**" if lower else "(fresh) -> fusion.**",
    ])


def bert_merged(*, source: str = "", head: str | None = None, pool: str | None = None, segments: bool = False, visual: bool = False) -> list[Row]:
    """The same files as the start of one stack over words and regions (UNITER, VisualBERT), whose image embedding stays fresh.

    Args:
        source: what the keys start with, with its dot.
        head: our words head; None drops theirs.
        pool: our pool, such as heads.itm.pool.0; None drops theirs.
        segments: whether our embedding keeps the token types.
        visual: whether regions have tables of positions and types of their own, which start as those of words (Li et al. 2019).
    """
    words = words_rows("cls.predictions.", head) if head else ["cls.predictions.** -> (dropped)"]
    tables = [
        f"{source}embeddings.position_embeddings.weight    -> text.embed.position.weight | also cut",
        f"{source}embeddings.position_embeddings.weight    -> vision.embed.position.weight | also cut",
        f"{source}embeddings.token_type_embeddings.weight  -> text.embed.segment.weight | also",
        f"{source}embeddings.token_type_embeddings.weight  -> vision.embed.segment.weight | also",
    ]
    return parse([
        *(tables if visual else []), *embedding_rows(source, "text.embed", segments=segments),
        *layer_rows(f"{source}encoder.layer.*", "fusion.joint.trunk.blocks.*"), *words,
        f"{source}pooler.dense.* -> {pool}.dense.*" if pool else f"{source}pooler.** -> (dropped)",
        "cls.seq_relationship.** -> (dropped)", "(fresh) -> vision.**",
    ])
