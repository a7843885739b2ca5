"""The language of a text, by its function words and the spellings that its words cannot have.

A language's score is the number of its different function words in a text, less the words that it
does not spell: those with letters, or with a last letter, that its own words do not have. A word that several
languages share counts for all of them, so it cannot decide between them. A text is in the language
whose score is above that of every other one, if enough of its words are function words at all. In
running text of these languages about two words in five are; names and lists have few.

`RIVALS` are languages that no prompt asks for. Without them, a text in Catalan would pass as
Spanish, and one in Dutch as German.
"""

import re
from collections.abc import Set as AbstractSet
from typing import Literal, get_args

Language = Literal["en", "es", "fr", "de", "it", "pt"]

MINIMUM_WORDS = 2
"""Different function words of its language that a text needs, however short it is."""
MINIMUM_SHARE = 0.15
"""Share of a text's different words that must be function words of its language."""

_WORD = re.compile(r"([^\W\d_]+)(['’])?")

# Articles, pronouns, prepositions, conjunctions, auxiliaries and the commonest adverbs; elided forms
# (l', qu', dell') are words of their own.
_WORDS = {
    "en": """
        a an the and or but if because while of to in on at by for with from into about between
        after before through during without under over i you he she it we they me him her us them
        my your his its our their this that these those who whom whose which what where when why how
        is are was were be been being am do does did have has had will would can could should may
        might must not no so than then there here very also just only more most some any all each
        every many much such other own as up out off too both few don doesn isn
    """,
    "es": """
        el la los las lo un una unos unas y e o u pero si no sí que porque aunque cuando donde como
        quien quienes cual cuales cuyo de del a al en con por para sin sobre entre desde hasta hacia
        según tras durante yo tú él ella usted nosotros ellos ellas ustedes me te se nos le les mi mis
        tu tus su sus nuestro nuestra este esta esto estos estas ese esa eso esos aquel aquella es son
        era eran fue fueron ser está están estar soy eres somos ha han he hay había muy más menos
        también ya siempre nunca todo toda todos todas cada otro otra otros otras mucho mucha muchos
        muchas algo algunos algunas nada bien así puede pueden tiene tienen hacer sino luego además
    """,
    "fr": """
        le la les l' un une des du de d' et ou mais si ne n' pas non oui que qu' qui dont où quand
        comme comment pourquoi parce car à au aux en dans par pour avec sans sous sur entre vers chez
        depuis pendant avant après je j' tu il elle on nous vous ils elles me m' te t' se s' lui leur
        leurs y mon ma mes ton ta tes son sa ses notre nos votre vos ce c' cet cette ces cela ça est
        sont était étaient être suis es sommes êtes a ont ai avons avez avait fait peut peuvent très
        plus moins aussi bien toujours jamais tout toute tous toutes chaque autre autres même
        beaucoup quelque quelques rien puis ainsi alors donc afin lorsque
    """,
    "de": """
        der die das den dem des ein eine einen einem einer eines und oder aber wenn weil dass ob als
        wie wo wann warum nicht kein keine keinen nein ja von zu zum zur in im an am auf aus bei beim
        mit nach vor für durch ohne gegen über unter zwischen um bis seit während ich du er sie es
        wir ihr mich dich ihn uns euch mir dir ihm ihnen sich mein meine dein sein seine ihre unser
        unsere dieser diese dieses diesen jener wer was welche welcher ist sind war waren sein bin
        bist wird werden wurde wurden hat haben hatte habe kann können muss soll will auch nur noch
        schon sehr mehr immer nie alle alles viel viele jeder jede man so dann da hier gern gerne
    """,
    "it": """
        il lo la i gli le l' un uno una un' e ed o ma se non sì che perché quando dove come chi cui
        quale quali di d' da in con su per tra fra a ad del dello della dell' dei degli delle al allo
        alla all' ai agli alle dal dallo dalla dall' dai dagli dalle nel nello nella nell' nei negli
        nelle sul sullo sulla sull' sui sugli sulle col io tu lui lei noi voi loro mi ti si ci vi ne mio mia
        miei mie tuo tua suo sua suoi sue nostro nostra questo questa questi queste quello quella
        quelli quelle è sono era erano essere sei siamo ho ha hanno abbiamo aveva può possono molto
        molta molti molte più meno anche già sempre mai tutto tutta tutti tutte ogni altro altra
        altri altre poco così poi dopo prima durante senza mentre oppure quindi c'
    """,
    "pt": """
        o a os as um uma uns umas e ou mas se não sim que porque quando onde como quem qual quais cujo
        de do da dos das em no na nos nas num numa ao aos à às pelo pela pelos pelas com por para sem
        sobre entre desde até após durante eu tu ele ela você nós eles elas vocês me te lhe lhes meu
        minha meus minhas teu seu sua seus suas nosso nossa este esta isto estes estas esse essa isso
        esses aquele aquela é são era eram foi foram ser está estão estar sou somos há tem têm tinha
        muito muita muitos muitas mais menos também já sempre nunca tudo todo toda todos todas cada
        outro outra outros outras algo alguns algumas nada bem assim pode podem fazer depois além
    """,
    "ca": """
        el la els les l' lo un una uns unes i o però si no sí que perquè quan on com qui qual quals
        de d' del dels a al als en amb per pel pels sense sobre entre des fins cap segons durant jo tu ell
        ella nosaltres vosaltres ells elles em et es ens us li hi ho n' s' m' t' meu meva meus teu seu
        seva seus seves nostre nostra aquest aquesta això aquests aquestes aquell aquella és són era
        eren ser estar està estan sóc som ha han he hem havia hi molt molta molts moltes més menys
        també ja sempre mai tot tota tots totes cada altre altra altres alguns algunes res bé així pot
        poden té tenen fer després abans doncs
    """,
    "gl": """
        o a os as un unha uns unhas e ou mais pero se non si que porque cando onde como quen cal cales
        de do da dos das dun dunha en no na nos nas nun nunha ao aos á ás polo pola polos polas co coa
        cos coas con por para sen sobre entre desde ata tras durante eu ti el ela vostede nós eles
        elas me te lle lles meu miña meus teu seu súa seus súas noso nosa este esta isto estes estas
        ese esa iso aquel aquela é son era eran foi foron ser está están estar son somos hai ten teñen
        había moi moito moita moitos moitas máis menos tamén xa sempre nunca todo toda todos todas
        cada outro outra outros outras algo algúns nada ben así pode poden facer despois ademais
    """,
    "ro": """
        un o unei unui și sau dar dacă nu da că pentru când unde cum cine care ce de din la în pe cu
        fără sub între către spre până după eu tu el ea noi voi ei ele mă te se ne vă îl îi lui lor
        meu mea tău său sa acest această acesta aceasta acești aceste acel acea este sunt era erau fi
        fost am ai are au avem foarte mai mult multe mulți și tot toți toate fiecare alt altă alte
        nimic bine astfel poate pot prin ca să al ale lângă
    """,
    "nl": """
        de het een en of maar als omdat dat dan die deze dit niet geen nee ja van te tot in op aan uit
        bij met naar voor door zonder tegen over onder tussen om sinds tijdens ik jij je u hij zij ze
        wij we jullie mij hem haar ons hen hun mijn jouw zijn onze wie wat welke waar wanneer waarom
        hoe is was waren ben bent wordt worden werd heeft hebben had heb kan kunnen moet zal wil ook
        nog al heel zeer meer altijd nooit alle alles veel elke iedere er hier daar zo graag
    """,
    "da": """
        og i på at en et den det de der som er var af til for med om fra ved over under efter før uden
        mellem jeg du han hun vi dem sig mig dig ham hende os min mit mine din sin sit sine deres vores
        denne dette disse ikke ingen nej ja men eller hvis fordi når hvor hvad hvem hvorfor har havde
        have kan kunne skal skulle vil ville bliver blev være været også kun meget mere altid aldrig
        alle alt mange hver her så
    """,
    "sv": """
        och i på att en ett den det de där som är var av till för med om från vid över under efter
        innan utan mellan jag du han hon vi dem sig mig dig honom henne oss min mitt mina din sin sitt
        sina deras vår denna detta dessa inte ingen nej ja men eller eftersom när hur vad vem varför
        har hade ha kan kunde ska skulle vill blir blev vara varit också bara mycket mer alltid aldrig
        alla allt många varje här så
    """,
}
RIVALS = tuple(sorted(set(_WORDS) - set(get_args(Language))))
_FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in _WORDS.items()}


_ELIDED = {word for words in _FUNCTION_WORDS.values() for word in words if word.endswith("'")}

# What the words of a language do not have. Endings are those of native words; a loan word more or less
# does not decide.
_FOREIGN = {
    language: re.compile(pattern)
    for language, pattern in {
        "en": "[^a-zéèêïöñç]",
        "es": "[^a-záéíóúüñ]|..[bcfghkmpqtvwç]$",
        "fr": "[^a-zàâæçéèêëîïôœùûüÿ]|...[aio]$",
        "de": "[^a-zäöüßé]",
        "it": "[^a-zàèéìíîòóùú]|[jkwxy]|..[^aeiouàèéìíîòóùú]$",
        "pt": "[^a-záâãàçéêíóôõúü]|[kwy]|..[bcdfghnpqtvç]$",
        "ca": "[^a-zàçéèíïóòúü]|[kw]|..o$",
        "gl": "[^a-záéíïóúüñ]|[jkwy]|..[bcdfghmpqtv]$",
        "ro": "[^a-zăâîșțşţ]|[kqwy]",
        "nl": "[^a-zéëïóöüèê]",
        "da": "[^a-zæøåé]",
        "sv": "[^a-zåäöé]",
    }.items()
}


def words_of(text: str) -> list[str]:
    """The words of a text, case folded; digits and punctuation separate words."""
    return [word.casefold() for word, _ in _WORD.findall(text)]


def is_in_language(text: str, language: Language) -> bool:
    """Whether a text is in `language`; without enough evidence it is not."""
    words = {
        word + "'" if elided and word + "'" in _ELIDED else word
        for word, elided in _WORD.findall(text.casefold())
    }
    hits = len(words & _FUNCTION_WORDS[language])
    if hits < MINIMUM_WORDS or hits < MINIMUM_SHARE * len(words):
        return False
    score = _score(words, language)
    return all(score > _score(words, other) for other in _FUNCTION_WORDS if other != language)


def _score(words: AbstractSet[str], language: str) -> int:
    known, foreign = _FUNCTION_WORDS[language], _FOREIGN[language]
    misspelled = sum(foreign.search(word.removesuffix("'")) is not None for word in words - known)
    return len(words & known) - misspelled
