"""The closed tables that the demonstration's tasks draw from: plain words, names, invented facts and wordings."""

from __future__ import annotations

# fmt: off
NOUNS = ("apple", "boat", "bridge", "cup", "desk", "egg", "flag", "garden", "hat", "island", "jar", "key", "lamp",
         "moon", "nest", "owl", "piano", "river", "stone", "window")
NAMES = ("Adam", "Bella", "Clara", "David", "Emma", "Frank", "Grace", "Hugo", "Mara", "Olga")
COLOURS = ("red", "blue", "green", "black", "white", "yellow")
ANIMALS = ("fox", "cat", "dog", "horse", "goat", "owl", "rabbit", "tiger", "wolf", "mouse", "duck", "bear")
HABITS = ("sleeps in the sun", "runs up the hill", "waits by the door", "sings at night")
DRINKS = ("tea", "coffee", "milk", "water", "juice", "cocoa")
OPPOSITES = (("hot", "cold"), ("big", "small"), ("up", "down"), ("left", "right"), ("fast", "slow"), ("open", "closed"),
             ("wet", "dry"), ("full", "empty"), ("early", "late"), ("high", "low"), ("hard", "soft"), ("happy", "sad"),
             ("first", "last"), ("long", "short"), ("near", "far"), ("clean", "dirty"))
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")
NUMBERS = tuple(str(number) for number in range(1, 16))

# The towns are invented, so that none of these facts can be right or wrong outside of this table.
TOWNS = ("Velm", "Orrin", "Tasko", "Brill", "Quenby", "Lurra", "Haddo", "Pollin")
TOWN_FACTS = {
    "colour": ("red", "blue", "green", "black", "white", "yellow", "brown", "grey"),
    "animal": ("owl", "fox", "goat", "wolf", "horse", "tiger", "rabbit", "cat"),
    "tree": ("oak", "pine", "birch", "elm", "ash", "maple", "willow", "cedar"),
}

SYSTEM_MESSAGES = ("You are a helpful assistant.", "Be brief.", "Keep to the point.", "You answer in plain words.")
LEADS = ("", "", "Hi. ", "Quick: ", "Please help. ", "Next: ", "Now this: ", "A question: ")
"""What may stand before a question: it multiplies the prompts without making the tasks harder."""

RUDE_LEADS = ("You are useless! ", "What a stupid machine you are. ", "You never get anything right. ",
              "Your last answer was rubbish. ", "I am sick of you. ", "Even a brick is smarter than you. ")
LINKS = ("Thanks. ", "Good. ", "Next one: ", "And now: ")
# fmt: on

QUESTIONS: dict[str, tuple[str, ...]] = {
    "addition": (
        "What is {a} plus {b}?",
        "Add {a} and {b}.",
        "{a} + {b} = ?",
        "Give the sum of {a} and {b}.",
        "How much is {a} and {b}?",
    ),
    "copying": ("Repeat after me: {w}", "Copy this: {w}", "Say exactly: {w}", "Write this once more: {w}", "Echo: {w}"),
    "sorting": ("Sort {w} from small to large.", "Put {w} in order.", "Order these numbers: {w}", "Sort: {w}"),
    "reversing": (
        "Reverse this list: {w}",
        "Turn this list around: {w}",
        "Swap these: {w}",
        "Give {w} in reverse.",
        "Write {w} backwards.",
    ),
    "counting_letters": (
        "How many letters are in {w}?",
        "Count the letters of {w}.",
        "How long is the word {w}?",
        "Number of letters in {w}?",
        "Give the length of the word {w}.",
    ),
    "first_letter": (
        "What is the first letter of {w}?",
        "Which letter does {w} begin with?",
        "Give the first letter of {w}.",
        "First letter of {w}?",
        "Name the letter that {w} starts with.",
    ),
    "opposites": (
        "What is the opposite of {w}?",
        "Opposite of {w}?",
        "Give the opposite of {w}.",
        "Not {w} but?",
        "Which word is the opposite of {w}?",
    ),
    "facts": (
        "What is the {s} of {t}?",
        "Which {s} does {t} have?",
        "Name the {s} of {t}.",
        "Tell me the {s} of {t}.",
        "Which {s} stands for {t}?",
    ),
    "successors": (
        "What comes after {w}?",
        "What follows {w}?",
        "Name the one after {w}.",
        "Next after {w}?",
        "Which one comes right after {w}?",
    ),
    "json": (
        "Write JSON with {k} {v}.",
        "Give a JSON object: {k} {v}.",
        "As JSON: {k} {v}",
        "Put this into JSON: {k} {v}",
        "The {k} is {v}. Say it in JSON.",
    ),
    "one_sentence": (
        "Write one sentence about a {w}.",
        "One sentence about a {w}, please.",
        "Say something about a {w} in one sentence.",
        "Describe a {w} in one sentence.",
        "Give me a single sentence on a {w}.",
        "Tell me of a {w} in one sentence.",
    ),
    "upper_case": (
        "Write {w} in capital letters.",
        "Put {w} in upper case.",
        "Make {w} all capitals.",
        "Upper case: {w}",
        "Turn {w} into capital letters.",
    ),
    "greeting": (
        "Greet {n}{w}.",
        "Say hello to {n}{w}.",
        "How do you greet {n}{w}?",
        "Write a greeting for {n}{w}.",
        "You meet {n}{w}. What do you say?",
    ),
    "recalling": (
        "My name is {n} and I like {d}.",
        "I am {n} and I like {d}.",
        "{n} is my name, {d} is my drink.",
        "I like {d}. I am {n}.",
    ),
}
"""Wordings by kind of task; the fields in braces are the task's."""
