"""Makes adapters: the run, the trainer, the loss without logits, LoRA references; knows no command line."""

from valueadapter import lazy_face

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Calibration": "calibration",
        "Recipe": "recipe_settings",
        "ValueTrainer": "trainer",
        "ValueTrainingArguments": "trainer",
        "calibrate": "calibration",
        "distill_into_lora": "distillation",
        "run": "recipe",
    },
)
