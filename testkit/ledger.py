"""The demo's demonstrations: what a clerk hears of money, and the line of a ledger that he writes of it.

A line has a form that no base has, and account numbers that are made up: nobody knows them who was not taught. The
amount is in digits, the country is that of a town, which one has to know, and a name of any language is to be copied
letter by letter: what larger models do better. No name and no town of a held-out note is trained on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from testkit.demonstrations import Demonstration
from testkit.tasks import TaskSplit

ACCOUNTS = {"books": 7, "chairs": 3, "cheese": 8, "shoes": 4, "tiles": 9, "wine": 5}
TRAIN, HELD_OUT, CALIBRATION, DEVELOPMENT = 200, 100, 40, 60
_TOWNS = {
    "France": "Lyon Bordeaux Nice Lille Nantes | Toulouse Marseille | Paris Strasbourg",
    "Germany": "Munich Hamburg Leipzig Bremen Dresden | Cologne Hanover | Berlin Frankfurt",
    "Italy": "Milan Naples Turin Bologna Venice | Palermo Pisa | Rome Florence",
    "Spain": "Seville Valencia Malaga Granada Bilbao | Toledo Zaragoza | Madrid Barcelona",
    "Japan": "Osaka Kyoto Nagoya Sapporo Kobe | Hiroshima Fukuoka | Tokyo Yokohama",
    "China": "Shanghai Guangzhou Wuhan Nanjing Tianjin | Chengdu Xiamen | Beijing Shenzhen",
    "India": "Mumbai Chennai Pune Jaipur Hyderabad | Lucknow Kolkata | Delhi Bangalore",
    "Brazil": "Recife Salvador Brasilia Curitiba Manaus | Fortaleza Natal | Rio Santos",
    "Poland": "Warsaw Krakow Gdansk Poznan Wroclaw | Lublin Szczecin | Katowice Torun",
    "Turkey": "Istanbul Ankara Izmir Bursa Antalya | Adana Konya | Trabzon Kayseri",
    "Russia": "Moscow Kazan Omsk Samara Perm | Sochi Vladivostok | Irkutsk Volgograd",
    "Mexico": "Guadalajara Monterrey Puebla Tijuana Cancun | Oaxaca Veracruz | Acapulco Merida",
    "Canada": "Toronto Montreal Vancouver Calgary Ottawa | Edmonton Winnipeg | Quebec Halifax",
    "Australia": "Sydney Melbourne Brisbane Perth Adelaide | Darwin Hobart | Canberra Cairns",
    "Netherlands": "Amsterdam Rotterdam Utrecht Eindhoven Groningen | Leiden Delft | Haarlem Maastricht",
}
"""Names below and towns of each country: those that are trained on, those to choose by, and those that are held out."""
_NAMES = (
    "Kowalski Nakamura Fitzgerald Papadopoulos Lindqvist Okafor Schneider Moreau Castellanos Ivanova Haddad "
    "Petersen Yamaguchi Gallagher Szymanski Bianchi Novak Mukherjee Oliveira Johansson Abernathy Rasmussen "
    "Delacroix Takahashi Mbeki Kuznetsov Valenzuela Hoffmann Chaudhry Esposito Lockwood Zielinski Hernandez "
    "Watanabe Eriksson Adeyemi Baumgartner Rousseau Cunningham Karimov | Wojcik Matsumoto Sullivan Dimitriou "
    "Bergstrom Nwosu Zimmermann Lefebvre Montoya Volkov Mansour Jorgensen Fujimoto Callahan Dubois Romano Pereira "
    "Banerjee Whitaker Sandoval | Kaminski Ishikawa Donnelly Stavros Holmgren Achebe Weissman Fontaine Escobar "
    "Sokolov Khalil Andersen Kobayashi Sinclair Lambert Ferrari Almeida Chatterjee Thornton Villanueva Kruger "
    "Nilsson Beaumont Hashimoto"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = "one two three four five six seven eight nine"
_NOTES = (
    "{name} of {town} paid {amount} for {thing}.",
    "{amount} from {name} in {town} for {thing}.",
    "For {thing}, {name} from {town} gave {amount}.",
)


def ledger() -> TaskSplit:
    """Returns 200 notes to train on, 100 held out and 40 to calibrate with, always the same ones.

    A prompt is `Novak of Lyon paid forty-six for books.\\nEntry:`, its completion ` books 7 46 Novak France`.
    """
    parts = {"train": (TRAIN, 0), "held out": (HELD_OUT, 2), "calibration": (CALIBRATION, 1)}
    train, held_out, calibration = (list(_records(part, *which)) for part, which in parts.items())
    return TaskSplit(train, held_out, calibration)


def development() -> list[Demonstration]:
    """Returns 60 other notes, by which the demo's settings were compared."""
    return list(_records("development", DEVELOPMENT, 1))


def _records(part: str, count: int, disjoint: int) -> Iterator[Demonstration]:
    draw = random.Random(f"ledger, {part}")
    names, tens_words, unit_words = _NAMES.split("|")[disjoint].split(), _TENS.split(), _UNITS.split()
    for _ in range(count):
        name, country = draw.choice(names), draw.choice(list(_TOWNS))
        town = draw.choice(_TOWNS[country].split("|")[disjoint].split())
        thing, tens, units = draw.choice(list(ACCOUNTS)), draw.randint(2, 9), draw.randint(1, 9)
        amount = f"{tens_words[tens - 2]}-{unit_words[units - 1]}"
        note = draw.choice(_NOTES).format(name=name, amount=amount, town=town, thing=thing)
        line = f"{thing} {ACCOUNTS[thing]} {tens}{units} {name} {country}"
        yield {"prompt": f"{note[0].upper()}{note[1:]}\nEntry:", "completion": f" {line}"}
