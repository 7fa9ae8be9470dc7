"""Titles that no fashion catalogue has: other fields, other languages, codes, placeholders, random strings.

`FITTING` and `JUDGING` share no field, no language and no kind of string, so that a measure of familiarity that was
fitted on the one is judged on what it has not seen. Every function draws from the generator that it is given.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass

TitleMaker = Callable[[random.Random], str]


@dataclass(frozen=True, slots=True)
class Field:
    """Words of one field or language, separated by commas."""

    brands: str
    attributes: str
    products: str
    details: str

    def __call__(self, rng: random.Random) -> str:
        """Draw a title: perhaps a brand, no to two attributes, a product, perhaps a detail or two."""
        parts = [*_some(self.brands, rng, 0, 1), *_some(self.attributes, rng, 0, 2)]
        return " ".join([*parts, *_some(self.products, rng, 1, 1), *_some(self.details, rng, 0, 2)])


def _some(words: str, rng: random.Random, least: int, most: int) -> list[str]:
    return rng.sample([word.strip() for word in words.split(",")], rng.randint(least, most))


# --- other fields ------------------------------------------------------------------------------------------

TOOLS = Field(
    "Bosch, Makita, DeWalt, Stanley, Ryobi, Metabo, Karcher, Einhell, Knipex",
    "cordless, heavy duty, professional, brushless, compact, electric, stainless steel, adjustable, black, yellow",
    "drill driver, angle grinder, circular saw, jigsaw, claw hammer, screwdriver set, socket wrench, pliers, spirit "
    "level, tape measure, pressure washer, sander, chisel, workbench, ladder, toolbox, heat gun, wood glue, wall "
    "plugs",
    "18V, 1200 W, with two batteries, 5 Ah, 230 mm, 24 pieces, with case, M8 x 40, 1/2 inch, 10 m, for concrete, blue",
)
ELECTRONICS = Field(
    "Samsung, Sony, LG, Logitech, Lenovo, Anker, Philips, Xiaomi, Canon, Kingston",
    "wireless, smart, 4K, portable, refurbished, mechanical, ultra slim, dual band, noise cancelling, white, black",
    "laptop, LED television, smartphone, router, keyboard, gaming mouse, external hard drive, tablet, monitor, USB "
    "hub, digital camera, printer, vacuum cleaner, microwave oven, washing machine, refrigerator, bluetooth "
    "speaker, charger",
    "55 inch, 128 GB, USB-C, 16 GB RAM, with HDMI, 2.4 GHz, 5000 mAh, 65 W, Full HD, Wi-Fi 6, 1 TB, silver, 2 m cable",
)
BOOKS = Field(
    "Penguin, Oxford, Springer, O'Reilly, Reclam, Vintage, Folio",
    "illustrated, complete, introductory, collected, annotated, pocket, the new, a short",
    "history of Rome, guide to algebra, cookbook, novel, dictionary, atlas of the world, detective stories, poems, "
    "biography, travel guide to Peru, textbook of chemistry, crossword puzzles, encyclopedia of birds, comic, bible",
    "hardcover, paperback, 3rd edition, volume 2, 416 pages, second hand, audio CD, large print, with exercises, 1998",
)
CAR_PARTS = Field(
    "Brembo, Castrol, Bosch, Valeo, Michelin, Mann, NGK, Hella",
    "front, rear, left, ceramic, synthetic, universal, heavy duty, galvanised, chrome",
    "brake pads, oil filter, spark plug, car battery, windscreen wiper, summer tyre, shock absorber, timing belt, "
    "engine oil, headlight bulb, radiator, roof rack, exhaust silencer, clutch kit, fuel pump, wing mirror, "
    "alternator",
    "5W-30, 205/55 R16, for VW Golf, 12V 70Ah, 4 litres, H7, set of 4, diesel, 2009 to 2015, OEM 1K0615301",
)
GARDEN = Field(
    "Gardena, Fiskars, Weber, Husqvarna, Scotts",
    "organic, galvanised, folding, climbing, hardy, solar, wooden, weatherproof, green",
    "lawn mower, garden hose, tomato seeds, flower pot, rose bush, potting soil, hedge trimmer, watering can, "
    "charcoal grill, greenhouse, wheelbarrow, fertiliser, parasol, bird feeder, compost bin, rake, pruning shears, "
    "fence panel",
    "25 m, 40 litres, 3 kg, 1.8 x 0.9 m, with stand, pack of 10, evergreen, 5 bar, terracotta, frost proof",
)
FURNITURE = Field(
    "Ikea, Ashley, Hemnes, Nordic Home, Urban Ladder, Tvilum, Wayfair",
    "oak, solid wood, modern, upholstered, extendable, walnut, rustic, velvet, grey, white, leather, corner, foldable",
    "dining table, armchair, bookcase, wardrobe, three seater sofa, bedside table, office chair, coffee table, bed "
    "frame, chest of drawers, bar stool, mattress, TV stand, desk, floor lamp, sideboard, bunk bed, kitchen "
    "cabinet, rug",
    "with six chairs, 160 x 200 cm, with storage, king size, with drawers, metal legs, set of 2, brown, for living "
    "room",
)
GROCERIES = Field(
    "Nestle, Heinz, Barilla, Kellogg's, Lindt, Amul, Tropicana, Danone, Knorr",
    "organic, fresh, whole, low fat, roasted, salted, dark, sugar free, frozen, instant, smoked, wholegrain, extra "
    "virgin",
    "olive oil, basmati rice, tomato ketchup, corn flakes, orange juice, cheddar cheese, spaghetti, peanut butter, "
    "ground coffee, green tea, milk chocolate, chicken breast, bananas, yoghurt, potato chips, honey, tuna, butter, "
    "oat milk",
    "500 g, 1 kg, 2 x 250 ml, pack of 6, 1 litre, family pack, with almonds, gluten free, 12 oz, vanilla flavour, can",
)
PETS = Field(
    "Whiskas, Pedigree, Royal Canin, Trixie, Purina",
    "adult, grain free, senior, indoor, small breed, self cleaning, chewable, natural",
    "dry dog food, cat litter, aquarium filter, scratching post, bird cage, dog leash, hamster wheel, fish flakes, "
    "chew bone, flea shampoo, cat tree, rabbit hutch, puppy pads, reptile lamp",
    "12 kg, with salmon, for kittens, 20 l, pack of 40, with chicken, 100 cm, for large dogs",
)
MEDICINE = Field(
    "Bayer, Ratiopharm, Pfizer, Sandoz, Omron",
    "effervescent, oral, sterile, digital, sugar free, extended release, disposable",
    "ibuprofen tablets, cough syrup, blood pressure monitor, vitamin C, nasal spray, adhesive plasters, "
    "thermometer, insulin needles, antacid, bandage, antihistamine, surgical masks, eye drops, fish oil capsules",
    "400 mg, 50 tablets, 100 ml, 5 x 10 cm, for children, prescription free, 0.9 %, lemon flavour",
)
TOYS = Field(
    "Lego, Playmobil, Hasbro, Ravensburger, Mattel, Faber-Castell",
    "wooden, remote controlled, magnetic, educational, classic, glow in the dark, inflatable",
    "building blocks, jigsaw puzzle, board game, toy train, doll's house, teddy bear, chess set, ballpoint pens, "
    "notebook, glue stick, coloured pencils, paddling pool, kite, dinosaur figure, stapler, copy paper",
    "1000 pieces, age 3 and up, for 2 to 6 players, A4, 24 colours, with motor, 80 g, 500 sheets",
)

# --- other languages: of fashion too, since a title that cannot be read says nothing -----------------------

GERMAN = Field(
    "Esprit, Tchibo, Ikea, Bosch, Hugo",
    "blaues, kariertes, schwarze, langärmeliges, wasserdichte, rote, gestreifter, helle",
    "Herrenhemd, Damenkleid, Turnschuhe, Hose, Esstisch, Kühlschrank, Akkuschrauber, Vollmilch, Handtasche, Uhr, "
    "Jacke, Gürtel",
    "für Herren, aus Baumwolle, mit Knöpfen, Größe 42, aus Leder, für Kinder, mit sechs Stühlen, 500 Gramm",
)
SPANISH = Field(
    "Zara, Desigual, Mango",
    "nueva, elegante, barata, cómodos, grande",
    "camisa de hombre, vestido de mujer, zapatos deportivos, pantalones vaqueros, reloj, bolso de cuero, silla, "
    "mesa de comedor, aceite de oliva, gafas de sol, cinturón",
    "azul marino, de algodón, a cuadros, negra, para niños, de piel, manga larga, talla M",
)
RUSSIAN = Field(
    "Твое, Спортмастер",
    "синяя, красное, чёрные, новый, тёплая",
    "мужская рубашка, женское платье, кроссовки, джинсы, часы, сумка, куртка, обеденный стол, ремень, молоко",
    "из хлопка, в клетку, для детей, размер 44, кожаный, с длинным рукавом",
)
CHINESE = Field(
    "李宁, 安踏",
    "蓝色, 红色, 新款, 时尚",
    "男士衬衫, 连衣裙, 运动鞋, 牛仔裤, 手表, 手提包, 餐桌, 电钻, 牛奶",
    "纯棉, 格子, 儿童, 长袖, 真皮",
)
FRENCH = Field(
    "Lacoste, Kiabi, Célio",
    "nouvelle, belle, élégante, grands, petite",
    "chemise homme, robe d'été, chaussures de sport, pantalon, montre, sac à main, canapé, fromage, veste, ceinture",
    "bleu marine, en coton, à carreaux, pour enfants, en cuir, manches longues, taille 38",
)
ITALIAN = Field(
    "Benetton, Geox",
    "nuova, elegante, comode, grande",
    "camicia da uomo, vestito da donna, scarpe da ginnastica, pantaloni, orologio, borsa, tavolo da pranzo, giacca, "
    "cintura",
    "blu, di cotone, a quadri, per bambini, in pelle, a maniche lunghe",
)
TURKISH = Field(
    "Koton, Mavi",
    "yeni, şık, mavi, siyah",
    "erkek gömlek, kadın elbise, spor ayakkabı, kot pantolon, saat, çanta, yemek masası, ceket, kemer",
    "pamuklu, kareli, çocuk için, deri, uzun kollu",
)
JAPANESE = Field(
    "ユニクロ, 無印良品",
    "青い, 新しい, 赤い",
    "メンズシャツ, ワンピース, スニーカー, ジーンズ, 腕時計, ハンドバッグ, ダイニングテーブル, 牛乳",
    "綿, チェック柄, 子供用, 長袖, 本革",
)
ARABIC = Field(
    "نمشي, سنتربوينت",
    "أزرق, جديد, أسود",
    "قميص رجالي, فستان نسائي, حذاء رياضي, بنطلون جينز, ساعة, حقيبة يد, طاولة طعام",
    "قطن, للأطفال, جلد, كم طويل",
)

# --- strings that are no titles ----------------------------------------------------------------------------

KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

SYLLABLES = (
    *("ba", "ce", "dor", "fi", "gal", "hum", "jo", "kri", "lu", "mev"),
    *("nor", "ost", "pra", "qui", "rel", "sto", "tun", "vix", "wam", "zel"),
)

SENTENCES = (
    "please find the attached document",
    "we will be closed on Monday",
    "error 404 page not found",
    "the quick brown fox jumps over the lazy dog",
    "click here to unsubscribe from this newsletter",
    "meeting notes from last week's call",
    "your parcel will be delivered tomorrow",
    "how do I reset my password",
    "lorem ipsum dolor sit amet consectetur",
    "SELECT * FROM products WHERE price > 10",
)


def keyboard(rng: random.Random) -> str:
    """Runs of neighbouring keys: `asdf qwer zxcv`."""

    def run() -> str:
        row = rng.choice(KEYBOARD_ROWS)
        first = rng.randrange(len(row) - 3)
        return row[first : first + rng.randint(3, 6)]

    return " ".join(run() for _ in range(rng.randint(1, 4)))


def article_number(rng: random.Random) -> str:
    """Letters, digits and dashes: `SKU-90412-XL`."""
    letters = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 4)))
    number = rng.randrange(10 ** rng.randint(3, 8))
    return rng.choice(
        (f"{letters}-{number}", f"{letters}{number}", str(number), f"{letters} {number}/{rng.randrange(99)}")
    )


def random_letters(rng: random.Random) -> str:
    """Words of random letters and digits."""
    alphabet = string.ascii_lowercase + string.digits
    return " ".join("".join(rng.choices(alphabet, k=rng.randint(2, 11))) for _ in range(rng.randint(1, 6)))


def invented_words(rng: random.Random) -> str:
    """Words that can be pronounced and do not exist."""
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))) for _ in range(rng.randint(1, 5)))


def file_name(rng: random.Random) -> str:
    """What a camera or a computer calls a file."""
    number = rng.randrange(10_000)
    return rng.choice((f"IMG_{number:04}.jpg", f"DSC{number:05}", f"screenshot {number}.png", f"untitled-{number % 9}"))


def random_digest(rng: random.Random) -> str:
    """A hexadecimal identifier."""
    return f"{rng.getrandbits(128):032x}"[: rng.choice((8, 12, 32))]


def punctuation(rng: random.Random) -> str:
    """Signs without a word."""
    return "".join(rng.choices("#@*%&$!?+-=/\\<>[]{}~^_;:.,0123456789 ", k=rng.randint(2, 20))).strip() or "?"


def sentence(rng: random.Random) -> str:
    """A sentence that is about no product."""
    return rng.choice(SENTENCES)


def _one_of(*titles: str) -> TitleMaker:
    return lambda rng: rng.choice(titles)


FITTING: Mapping[str, TitleMaker] = {
    "tools": TOOLS,
    "electronics": ELECTRONICS,
    "books": BOOKS,
    "car parts": CAR_PARTS,
    "garden": GARDEN,
    "German": GERMAN,
    "Spanish": SPANISH,
    "Russian": RUSSIAN,
    "Chinese": CHINESE,
    "random letters": random_letters,
    "article numbers": article_number,
    "file names": file_name,
    "placeholders": _one_of("N/A", "null", "untitled", "test", "-", "todo", "product title", "no name"),
}
"""Kinds of titles that a measure of familiarity may be fitted on, by name."""

JUDGING: Mapping[str, TitleMaker] = {
    "furniture": FURNITURE,
    "groceries": GROCERIES,
    "pets": PETS,
    "medicine": MEDICINE,
    "toys": TOYS,
    "French": FRENCH,
    "Italian": ITALIAN,
    "Turkish": TURKISH,
    "Japanese": JAPANESE,
    "Arabic": ARABIC,
    "keyboard": keyboard,
    "invented words": invented_words,
    "digests": random_digest,
    "punctuation": punctuation,
    "sentences": sentence,
    "other placeholders": _one_of("nan", "none", "undefined", "???", "n.a.", "tbd", "item", "unknown"),
}
"""Kinds of titles that it is judged on, by name."""
