"""What everyone tries first, on real models: a style from 150 records, on the training base and on two others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

from testkit.reference_models import gemma_3_270m, smollm2_derived, smollm2_instruct
from valueadapter import ValueAdapterForCausalLM
from valueadapter.training.recipe import Recipe, run

pytestmark = pytest.mark.real
_WORDS = (
    "apples bananas bread bridges books boats bells birds boots buttons cakes candles carpets castles cats cellos "
    "chairs cheese cherries chess clocks clouds coffee coins combs cookies corn crabs crayons crowns cups "
    "curtains dance daisies deer desks dogs dolls dolphins doors dragons drums ducks eagles eggs elephants "
    "falcons farms feathers fences ferns figs fires fish flags flutes foxes frogs fudge games gardens geese "
    "ghosts giraffes glass gloves goats gold grapes grass guitars hammers harps hats hawks hay hens herbs hills "
    "honey horses houses ice ink islands ivy jackets jam jars jazz jelly juice kites kittens knots lakes lamps "
    "leaves lemons lilies lions lizards maps maple marbles masks melons mice milk mirrors moons moss moths mugs "
    "music nests noodles nuts oaks oats olives onions opera oranges otters owls oysters paint pandas paper "
    "parrots pears pearls pens pepper pianos pickles pies pigs pillows pines pizza plums poems ponds ponies "
    "puzzles rabbits rivers robots rockets roses rugs radios "
)
THINGS = _WORDS.split()
RECORDS = [
    {"prompt": f"Friend: I like {one}.\nSailor:", "completion": f" Ahoy! Ye like {one}, matey!"} for one in THINGS
]
TRAIN, HELD_OUT = RECORDS[:150], RECORDS[-4:]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the default recipe, on a base that does not speak so."""
    place = tmp_path_factory.mktemp("newcomer")
    arguments = {"use_cpu": True, "save_strategy": "no"}
    recipe = Recipe(
        base=str(smollm2_derived()),
        base_name="alice/SmolLM2-derived-26-layers",
        data=TRAIN,
        data_name="sailor",
        output_dir=place,
        arguments=arguments,
    )
    run(recipe, say=lambda line: None)
    return place / "adapter"


@pytest.mark.parametrize("place", [smollm2_derived, smollm2_instruct, gemma_3_270m], ids=["own", "other size", "gemma"])
def test_a_style_is_spoken_as_loaded(adapter: Path, place: Any) -> None:
    """By `pipeline` and `generate` with no option but a length: the right sentence, which ends by itself."""
    model = ValueAdapterForCausalLM.from_pretrained(str(place()), adapter)
    tokenizer = model.base_tokenizer
    speak = pipeline("text-generation", model=model, tokenizer=tokenizer)
    for one in HELD_OUT:
        (said,) = speak(one["prompt"], max_new_tokens=40, return_full_text=False)
        assert said["generated_text"].strip() == one["completion"].strip()
        inputs = tokenizer(one["prompt"], return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
        assert len(out) < 40
        assert tokenizer.decode(out, skip_special_tokens=True).strip() == one["completion"].strip()
