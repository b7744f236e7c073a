"""ALBEF's checkpoints (key `model` of the file): one BERT whose upper layers are the fusion, momentum twins `*_m`, two queues."""

from __future__ import annotations

from vlpkit.rows import Row, parse
from vlpkit.tables.bert import embedding_rows, stack_rows, words_rows
from vlpkit.tables.timm import vit_rows

QUEUE = [
    "image_queue  -> objectives.itc.queue.v | transpose",   # theirs stands with one column a pair
    "text_queue   -> objectives.itc.queue.w | transpose",
    "queue_ptr    -> objectives.itc.queue.cursor | squeeze",
    "(fresh)      -> objectives.itc.queue.filled",           # their rows count from the first step, ours with start: random, too
]
NO_QUEUE = ["image_queue -> (dropped)", "text_queue -> (dropped)", "queue_ptr -> (dropped)", "idx_queue -> (dropped)", "ptr_queue -> (dropped)"]


def _towers(lower: int, *, twin: bool) -> list[str]:
    m, to = ("_m", "teacher.") if twin else ("", "")
    text = f"text_encoder{m}.bert."
    return [
        *vit_rows(f"visual_encoder{m}.", f"{to}vision"),
        *embedding_rows(text, f"{to}text.embed", segments=True),
        *stack_rows(text, lower=lower, text=f"{to}text", fusion=f"{to}fusion"),
        *words_rows(f"text_encoder{m}.cls.predictions.", f"{to}heads.mlm"),
        f"vision_proj{m}.*  -> {to}align.v.out.*",
        f"text_proj{m}.*    -> {to}align.w.out.*",
    ]


def albef(*, lower: int = 6, whole: bool = False) -> list[Row]:
    """A pre-training checkpoint.

    Args:
        lower: layers of the text part; the others are the fusion.
        whole: also the twins (`teacher.*`; its temperature is never read) and the queue (`objectives.itc.queue.*`); else both are
            dropped, since a teacher is copied after weights are loaded.
    """
    twins = ["visual_encoder_m.** -> (dropped)", "text_encoder_m.** -> (dropped)", "vision_proj_m.* -> (dropped)", "text_proj_m.* -> (dropped)"]
    rest = [*_towers(lower, twin=True), "(fresh) -> teacher.align.temperature", *QUEUE] if whole else [*twins, *NO_QUEUE]
    return parse([*_towers(lower, twin=False), "itm_head.* -> heads.itm.out.*", "temp -> align.temperature", *rest])
