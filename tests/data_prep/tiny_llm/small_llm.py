"""Texts of eight languages, and a recipe for an LLM that is made of them in a second."""

from data_prep.tiny_llm.pretraining import LlmRecipe

EIGHT_LANGUAGES = {
    "en": ["three hundred and forty five", "it's nine", "seventy two"],
    "de": ["fünfhundertdreiundzwanzig", "zwölf", "dreißig"],
    "nl": ["drieëntwintig", "vijf", "achtenzestig"],
    "fr": ["quatre-vingt-dix", "zéro", "l'été"],
    "es": ["veintidós", "mil", "dieciséis"],
    "it": ["ventitré", "cento", "sessantuno"],
    "pt": ["três", "cinquenta e três", "cento e dez"],
    "pl": ["pięć", "dziewięćdziesiąt sześć", "sto"],
}


SMALL = LlmRecipe(
    steps=40,
    batch_tokens=300,
    learning_rate=1e-2,
    vocabulary_size=120,
    hidden_size=32,
    intermediate_size=48,
    layers=2,
    heads=2,
)
