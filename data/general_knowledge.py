"""Forty-eight general-knowledge questions with four options each, written for this project: what a model knew before it
was tuned on finance, and should know after.

They are no part of any published set. `eval.general_knowledge` scores them.
"""

from __future__ import annotations

from typing import NamedTuple


class Question(NamedTuple):
    """One question. No option is a part of another."""

    text: str
    right: str
    wrong: tuple[str, str, str]

    @property
    def options(self) -> tuple[str, ...]:
        """All four, in alphabetical order, so that the place of the right one says nothing."""
        return tuple(sorted((self.right, *self.wrong)))


QUESTIONS: tuple[Question, ...] = (
    Question("What is the capital of France?", "Paris", ("Madrid", "Vienna", "Lisbon")),
    Question("What is the capital of Japan?", "Tokyo", ("Seoul", "Beijing", "Bangkok")),
    Question("What is the capital of Canada?", "Ottawa", ("Toronto", "Montreal", "Vancouver")),
    Question("What is the capital of Egypt?", "Cairo", ("Nairobi", "Tunis", "Baghdad")),
    Question("On which continent is Brazil?", "South America", ("Europe", "Africa", "Asia")),
    Question("On which continent is the Sahara desert?", "Africa", ("Asia", "Australia", "Europe")),
    Question("Which ocean lies between Europe and North America?", "Atlantic", ("Pacific", "Indian", "Arctic")),
    Question("Which is the highest mountain on Earth?", "Mount Everest", ("Mont Blanc", "Kilimanjaro", "Mount Fuji")),
    Question("Which river flows through London?", "Thames", ("Seine", "Danube", "Rhine")),
    Question("Which country has the shape of a boot?", "Italy", ("Norway", "Poland", "Ireland")),
    Question("In which country are the pyramids of Giza?", "Egypt", ("Greece", "Mexico", "India")),
    Question("Which city has the Statue of Liberty?", "New York", ("Chicago", "Boston", "Miami")),
    Question("What is the chemical symbol of gold?", "Au", ("Ag", "Fe", "Cu")),
    Question("Which gas do plants take in from the air?", "carbon dioxide", ("helium", "oxygen", "methane")),
    Question("What is water made of?", "hydrogen and oxygen", ("carbon and iron", "helium and neon", "salt and gold")),
    Question("At how many degrees Celsius does water boil at sea level?", "100", ("50", "212", "75")),
    Question("Which planet is closest to the Sun?", "Mercury", ("Venus", "Mars", "Jupiter")),
    Question("Which planet is the largest of the solar system?", "Jupiter", ("Earth", "Mars", "Venus")),
    Question("Which planet is known as the Red Planet?", "Mars", ("Saturn", "Neptune", "Venus")),
    Question("What does the Earth move around?", "the Sun", ("the Moon", "Mars", "Venus")),
    Question("How long does the Earth take to go around the Sun?", "one year", ("one day", "one month", "one week")),
    Question("What force pulls objects toward the Earth?", "gravity", ("friction", "magnetism", "electricity")),
    Question("Which organ pumps blood through the body?", "heart", ("liver", "lung", "kidney")),
    Question("With which organ do people think?", "brain", ("stomach", "skin", "kidney")),
    Question("How many legs does a spider have?", "eight", ("six", "four", "ten")),
    Question("How many legs does an insect have?", "six", ("eight", "four", "two")),
    Question("Which animal is the largest on Earth?", "blue whale", ("elephant", "giraffe", "polar bear")),
    Question("Which animal says meow?", "cat", ("dog", "horse", "duck")),
    Question("What do bees make?", "honey", ("milk", "silk", "wool")),
    Question("Which bird cannot fly?", "penguin", ("eagle", "swallow", "pigeon")),
    Question("What does a caterpillar become?", "butterfly", ("spider", "frog", "beetle")),
    Question("Which language is spoken in Brazil?", "Portuguese", ("Spanish", "French", "Italian")),
    Question("Which language is spoken in Austria?", "German", ("Dutch", "Polish", "Swedish")),
    Question("Who wrote Romeo and Juliet?", "William Shakespeare", ("Charles Dickens", "Mark Twain", "Jane Austen")),
    Question("Who painted the Mona Lisa?", "Leonardo da Vinci", ("Vincent van Gogh", "Pablo Picasso", "Claude Monet")),
    Question("Who developed the theory of relativity?", "Albert Einstein",
             ("Isaac Newton", "Charles Darwin", "Galileo Galilei")),
    Question("Who was the first president of the United States?", "George Washington",
             ("Abraham Lincoln", "Thomas Jefferson", "John Kennedy")),
    Question("In which year did the Second World War end?", "1945", ("1918", "1939", "1963")),
    Question("In which year did people first land on the Moon?", "1969", ("1945", "1989", "1912")),
    Question("How many days are in a week?", "seven", ("five", "ten", "twelve")),
    Question("How many months are in a year?", "twelve", ("seven", "ten", "twenty")),
    Question("How many minutes are in an hour?", "60", ("24", "100", "30")),
    Question("What is two plus two?", "four", ("three", "five", "six")),
    Question("What is ten times ten?", "100", ("20", "50", "11")),
    Question("How many sides does a triangle have?", "three", ("four", "five", "six")),
    Question("What is the opposite of hot?", "cold", ("warm", "dry", "tall")),
    Question("What is the color of the sky on a clear day?", "blue", ("green", "red", "brown")),
    Question("Which season comes after winter?", "spring", ("autumn", "summer", "December")),
)  # fmt: skip
