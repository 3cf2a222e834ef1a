"""The grammar of the sandbox as data: products and aspects, words with their polarity, patterns of reviews."""

# aspect -> what is said of it when it is good, and when it is bad.
ASPECTS = {
    "app": ("quick", "slow"),
    "battery": ("strong", "weak"),
    "brake": ("safe", "risky"),
    "button": ("handy", "clumsy"),
    "cable": ("tough", "fragile"),
    "camera": ("sharp", "blurry"),
    "design": ("elegant", "ugly"),
    "fabric": ("warm", "thin"),
    "frame": ("light", "heavy"),
    "handle": ("firm", "wobbly"),
    "keyboard": ("crisp", "mushy"),
    "lid": ("tight", "leaky"),
    "motor": ("quiet", "noisy"),
    "price": ("fair", "steep"),
    "screen": ("bright", "dim"),
    "seat": ("comfy", "stiff"),
    "smell": ("clean", "nasty"),
    "sound": ("clear", "muddy"),
    "strap": ("soft", "scratchy"),
    "wheel": ("steady", "shaky"),
    "zipper": ("smooth", "jammed"),
}

_PRODUCT_ASPECTS = {
    "backpack": "strap zipper fabric smell frame",
    "bike": "brake wheel seat frame handle",
    "blender": "motor lid button handle cable",
    "drill": "motor battery handle cable button",
    "headset": "sound cable battery strap button",
    "jacket": "zipper fabric smell strap button",
    "kettle": "lid handle cable button smell",
    "laptop": "battery screen keyboard sound frame",
    "phone": "battery screen camera sound app",
    "scooter": "brake wheel motor battery app",
    "stroller": "wheel brake seat strap fabric",
    "tablet": "battery screen camera cable app",
    "tent": "zipper fabric smell frame handle",
    "watch": "strap screen battery app button",
}
# Every product has a price and a design besides what is its own.
PRODUCTS = {product: (*own.split(), "price", "design") for product, own in _PRODUCT_ASPECTS.items()}

# Prompts say who writes and when, so that there are thousands of them. None of these words has a polarity.
OWNERS = [
    "a nurse",
    "a student",
    "a teacher",
    "a driver",
    "a farmer",
    "a painter",
    "a pilot",
    "a baker",
    "a doctor",
    "a plumber",
    "an artist",
    "an engineer",
    "a father",
    "a mother",
    "a grandmother",
    "a neighbor",
]
OCCASIONS = [
    "after a week",
    "after two weeks",
    "after a month",
    "after three months",
    "after a year",
    "after ten years",
    "after one summer",
    "after one winter",
    "in the city",
    "in the mountains",
    "in the office",
    "in the snow",
    "in the rain",
]

# kind -> strength -> (good words, bad words). An aspect's own adjectives have strength 1.
POLAR = {
    "adjective": {
        1: ("good nice decent solid pleasant", "bad poor dull flimsy shabby"),
        2: ("great superb brilliant wonderful amazing", "awful terrible dreadful horrible hopeless"),
    },
    "verb": {
        1: ("works helps pleases", "struggles annoys rattles"),
        2: ("shines impresses delights", "fails disappoints breaks"),
    },
    "feeling": {1: ("like enjoy", "dislike resent"), 2: ("love adore", "hate detest")},
    "noun": {1: ("bargain delight", "hassle letdown"), 2: ("joy treasure masterpiece", "disaster nightmare mess")},
    "advice": {2: ("recommend endorse", "regret curse")},
}

INTENSITY = {
    "extremely": 1.5,
    "very": 1.5,
    "really": 1.25,
    "truly": 1.25,
    "rather": 0.75,
    "fairly": 0.75,
    "somewhat": 0.5,
    "slightly": 0.5,
}
NEGATIONS = frozenset(("not", "never", "hardly"))
CONCESSIONS = frozenset(("although", "though"))
# "i wanted to love it" says what was hoped for, not what was found.
HOPES = frozenset(("wanted", "expected", "hoped"))


def _polarity() -> dict[str, float]:
    """Every polar word with its value: +strength or -strength, in -2 ... 2."""
    values: dict[str, float] = {}
    for good, bad in ASPECTS.values():
        values |= {good: 1.0, bad: -1.0}
    for strengths in POLAR.values():
        for strength, (good, bad) in strengths.items():
            values |= dict.fromkeys(good.split(), float(strength)) | dict.fromkeys(bad.split(), -float(strength))
    return values


POLARITY = _polarity()

# (weight, template, negated). A negated clause takes its polar word from the other side: "is not weak" is praise.
CLAUSES = (
    (6, "the {aspect} {link} {adjective}", False),
    (5, "the {aspect} {link} {degree} {adjective}", False),
    (2, "the {aspect} is not {adjective}", True),
    (2, "the {aspect} never {look} {adjective}", True),
    (1, "the {aspect} is hardly {adjective}", True),
    (2, "the {aspect} {verb} {tail}", False),
    (2, "the {aspect} never {verb}", True),
    (1, "the {aspect} hardly ever {verb}", True),
    (3, "{who} {feeling} the {aspect}", False),
    (1, "{who} {degree} {feeling} the {aspect}", False),
    (1, "{who} do not {feeling} the {aspect}", True),
    (1, "it is a {adjective} {thing}", False),
    (1, "it is a {degree} {adjective} {thing}", False),
    (1, "it is not a {adjective} {thing}", True),
    (1, "the {aspect} is a {noun}", False),
    (1, "the {aspect} is hardly a {noun}", True),
)
VERDICTS = (
    (3, "{close} it is a {noun}", False),
    (3, "{close} i {advice} it", False),
    (2, "{close} i do not {advice} it", True),
    (2, "what a {adjective} {thing}", False),
    (1, "{close} it is not a {noun}", True),
)
HOPE = ((2, "i wanted to {feeling} it", False), (1, "i expected a {noun}", False), (1, "i hoped for a {noun}", False))

# (weight, course of a review). + is a clause that speaks for the review's final opinion, - one against it, ~ either;
# V is a closing verdict, H a hope that the product did not meet, the rest stands as it is. Four reviews in ten open
# against their own opinion: enough to mislead, too few for a good opening to be a bad sign.
COURSES = (
    (5, "{open} + and + . + . V ."),
    (4, "+ , + and + . {later} + ."),
    (3, "V . + and + , + ."),
    (1, "+ . {later} + , though - ."),
    (3, "{open} - and - , but {later} + and + . V ."),
    (2, "- . - , but + and + . V ."),
    (1, "{open} - and - . {later} + and + , + ."),
    (2, "although - , + and + . V ."),
    (1, "H but + and + . {later} + ."),
    (2, "H but + . V ."),
    (2, "~ and ~ , but ~ . ~ ."),
)

FILLERS = {
    "link": ("is", "feels", "looks", "seems"),
    "look": ("feels", "looks", "seems"),
    "degree": tuple(INTENSITY),
    "who": ("i", "we", "my kids", "my friends", "my parents", "most people"),
    "tail": ("every day", "at home", "on the road", "all the time"),
    "thing": ("buy", "choice", "thing", "product"),
    "open": ("at first", "on paper", "out of the box", "honestly ,", "to my surprise ,", "from a distance"),
    "later": ("after a while", "these days", "in daily use", "sooner or later", "up close"),
    "close": ("overall", "in the end", "all in all", "in short"),
}
