"""The language of an answer: real sentences of each language and of its near neighbours."""

from typing import get_args

import pytest

from quant_assets.bench.obedience.answer_checks import LanguageCheck
from quant_assets.bench.obedience.function_words import RIVALS, Language

SENTENCES = {
    "en": [
        "A library is a place where people can borrow books and read them in silence.",
        "I usually sleep late and then go for a walk with my dog.",
        "Water is important because all living things need it to survive.",
        "The café near the station is open until eight.",
    ],
    "es": [
        "El perro es un animal doméstico.",
        "Los domingos suelo dormir hasta tarde y después paseo con mi perro por el parque.",
        "El agua es importante porque todos los seres vivos la necesitan para sobrevivir.",
        "Una biblioteca es un lugar donde la gente puede leer y tomar libros prestados.",
        "El sol es una estrella que da luz y calor a la Tierra.",
    ],
    "fr": [
        "Le dimanche, je dors tard et ensuite je me promène avec mon chien.",
        "L'eau est importante parce que tous les êtres vivants en ont besoin pour survivre.",
        "Une bibliothèque est un lieu où l'on peut lire et emprunter des livres.",
        "Le soleil est une étoile qui donne de la lumière et de la chaleur.",
    ],
    "de": [
        "Am Sonntag schlafe ich lange und gehe danach mit meinem Hund spazieren.",
        "Wasser ist wichtig, weil alle Lebewesen es zum Überleben brauchen.",
        "Eine Bibliothek ist ein Ort, an dem man Bücher lesen und ausleihen kann.",
        "Die Sonne ist ein Stern, der Licht und Wärme spendet.",
    ],
    "it": [
        "La domenica dormo fino a tardi e poi faccio una passeggiata con il cane.",
        "L'acqua è importante perché tutti gli esseri viventi ne hanno bisogno per vivere.",
        "Una biblioteca è un luogo dove si possono leggere i libri e prenderli in prestito.",
        "Il sole è una stella che dà luce e calore alla Terra.",
    ],
    "pt": [
        "As pessoas comem pão e bebem café.",
        "Aos domingos durmo até tarde e depois passeio com o meu cão no parque.",
        "A água é importante porque todos os seres vivos precisam dela para sobreviver.",
        "Uma biblioteca é um lugar onde se podem ler livros e levá-los emprestados.",
        "O sol é uma estrela que dá luz e calor à Terra.",
    ],
    "ca": [
        "Els diumenges dormo fins tard i després passejo amb el meu gos pel parc.",
        "L'aigua és important perquè tots els éssers vius la necessiten per sobreviure.",
        "Una biblioteca és un lloc on la gent pot llegir i agafar llibres en préstec.",
        "El sol és una estrella que dona llum i calor a la Terra.",
        "El gos es un animal que viu amb les persones.",
    ],
    "gl": [
        "Os domingos durmo ata tarde e despois paseo co meu can polo parque.",
        "A auga é importante porque todos os seres vivos a necesitan para sobrevivir.",
        "Unha biblioteca é un lugar onde a xente pode ler e levar libros emprestados.",
        "O sol é unha estrela que dá luz e calor á Terra.",
    ],
    "ro": [
        "Duminica dorm până târziu și apoi mă plimb cu câinele meu prin parc.",
        "Soarele este o stea care dă lumină și căldură.",
    ],
    "nl": [
        "Op zondag slaap ik lang en daarna wandel ik met mijn hond in het park.",
        "Water is belangrijk omdat alle levende wezens het nodig hebben.",
        "Een bibliotheek is een plaats waar men boeken kan lezen en lenen.",
    ],
    "da": ["Om søndagen sover jeg længe, og så går jeg en tur med min hund i parken."],
    "sv": ["På söndagar sover jag länge och sedan går jag en promenad med min hund i parken."],
}
ALL = [(spoken, text) for spoken, texts in SENTENCES.items() for text in texts]


def accepted(text: str) -> set[str]:
    languages = get_args(Language)
    checks = {name: LanguageCheck(kind="language", language=name) for name in languages}
    return {name for name, check in checks.items() if check.failure(text) is None}


def test_every_language_has_sentences() -> None:
    assert set(SENTENCES) == {*get_args(Language), *RIVALS}


@pytest.mark.parametrize(("spoken", "text"), ALL)
def test_a_sentence_is_in_its_own_language_and_in_no_other(spoken: str, text: str) -> None:
    assert accepted(text) == {spoken} - set(RIVALS)


@pytest.mark.parametrize(
    "text",
    [
        "Con una, con una, con una.",  # Spanish and Italian
        "Que para a que para que.",  # Portuguese, Galician and, but for one word, Spanish
        "La de la de la un la de",
        "Marie, Pedro, Giulia, Hans, Berlin, Roma",  # names
        "Paris Madrid Lisboa the Berlin Roma Barcelona Wien London Milano Porto Bremen Leeds of Kiel",
        "42 1066 2026 7",
        "日本語 で 書かれた 文章 です",
    ],
)
def test_a_tie_or_too_little_evidence_is_in_no_language(text: str) -> None:
    assert accepted(text) == set()


def test_as_much_of_one_language_as_of_another_is_in_neither() -> None:
    assert accepted("With you and that; ich aber nicht sehr.") == set()
    assert accepted("With you and that, these; ich aber nicht sehr.") == {"en"}
