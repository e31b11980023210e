"""Answers as models write them, and what each grader makes of them."""

import resource
import time

import pytest

from sgl_dynts.tasks import graders
from sgl_dynts.tasks.graders import GRADERS, grader_of
from sgl_dynts.tasks.limited import Limited
from sgl_dynts.tasks.problems import Problem
from sgl_dynts.tasks.programs import runs


def judge(grader, answer, text, **fields):
    problem = Problem("p", "t", fields.pop("question", "?"), answer, grader, **fields)
    return grader_of(problem).judge(problem, text)


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("n1 n2 n3", True),
        ("The path has three nodes.\nAnswer: n1 -> n2 -> n3", True),
        ("**Answer:** [n1, n2, n3].", True),
        ("n1 n3 n2", False),
        ("n1 n2", False),
        ("", False),
    ],
)
def test_words_are_compared_in_order_whatever_stands_between(text, is_right):
    assert judge("words", "n1 n2 n3", text).is_right is is_right


@pytest.mark.parametrize(
    ("answer", "text", "is_right"),
    [
        ("(A)", "So the answer is (A).", True),
        ("valid", "It follows.\nAnswer: Valid", True),
        ("True", "answer: true", True),
        ("a b c", "Sorted, that is\na b  c", True),
        ("(A)", "The answer is (B).", False),
        ("no", "Answer: no, but", False),
        ("17", r"Answer: \boxed{17}", True),
        ("17", r"At first \boxed{16}; that is off by one. \boxed{17}", True),
        ("yes", r"$\boxed{\text{Yes}}$", True),
        ("Yes", "The answer is: Yes, because all three hold.", True),
        ("Yes", "The answer is: Yes. All three of them hold.", True),
        ("Yes", "The answer is: No, because yes means three.", False),
        ("Yes", "Answer: Yes; all three hold.", True),
        ("Yes", "Answer: Yes - all three hold.", True),
        ("Yes", "Answer: Yes (all three hold)", True),
        ("Yes", r"Answer: $\text{Yes}$", True),
        ("Yes", "Answer: Yes!", True),
        ("Yes", "Answer: **Yes!** All three hold.", True),
        ("Yes", "Answer: **Yes**, since it holds.", True),
        ("Yes", 'Answer: "Yes", since it holds.', True),
        ("Yes", "Answer: *Yes* because it holds", True),
        ("Yes", "Answer: **No**, since it holds.", False),
        ("Yes", "Answer: Yes?", False),
        ("5", "Answer: 5!", False),
        ("5", "Answer: 5*3", False),
        ("(A)", "Answer: (A) red", True),
        ("(A)", "Answer: (A) or (B)", False),
        ("3", "Answer: 3 - 1", False),
        ("a", "Answer: a; b", False),
        ("3", "Answer: 3.5", False),
        ("3", "Answer: 3, 4", False),
        ("ü", "Answer: u\u0308", True),
        ("nai\u0308ve", "Answer: naïve", True),
        ("17", "Answer: \uff11\uff17", True),
        ("17", "答案\uff1a17", True),
        ("] )", "Answer: ] )", True),
        ("] )", "Answer: ]", False),
        ("} >", "Answer: } >", True),
        ("()", "Answer:", False),
    ],
)
def test_exact_compares_the_answer_line(answer, text, is_right):
    assert judge("exact", answer, text).is_right is is_right


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"... \boxed{C}", "C"),
        (r"A first, then \boxed{\text{(B)}}", "B"),
        ("The answer is (D).", "D"),
        ("I do not know", ""),
    ],
)
def test_a_choice_is_the_last_letter_boxed_or_told(text, said):
    for letter in "ABCD":
        verdict = judge("choice", letter, text)
        assert verdict.said == said
        assert verdict.is_right == (letter == said)


COMMENTS = [
    "The answer is correct.",
    "Note: the answer must be an integer.",
    "Since the answer is positive, we are done.",
    "答案是正确的。",
    "答案是3的倍数。",
    "This answer is 2 times the naive one.",
    "The answer is an integer, as it should be.",
    "Checking the answer: 7 - 2 = 5, as required.",
    "A common wrong answer is 7.",
    "If we counted 0 as well, the answer would be 7.",
    "For n = 1 the answer is 7.",
    "The answer for n = 1 is 7.",
    "The sample answer is 7.",
    "Could the answer be 7? It could not.",
    "The answer is > 7.",
    "### Verification of the answer\nPut it in: it holds.",
    "Answer: as boxed above.",
]
CORRECTIONS = [
    "Answer: 7",
    "**Answer:** 7",
    "Final answer: $7$.",
    "Correction: the answer is exactly 7.",
    "No, that is wrong. The answer is 7.",
    "I counted one twice, so the answer is 7, not 6. This answer is correct because it holds.",
    "Wait. The correct answer is **7**!",
    "<answer>7</answer>",
    "不对,答案是7,不是6。",
]


@pytest.mark.parametrize("grader", ["math", "exact"])
def test_a_box_stands_whatever_is_said_about_it(grader):
    texts = [f"\\boxed{{42}}\n\n{comment}" for comment in COMMENTS]
    assert [text for text in texts if not judge(grader, "42", text).is_right] == []


@pytest.mark.parametrize("grader", ["math", "exact"])
def test_an_answer_told_after_a_box_takes_its_place(grader):
    texts = [f"\\boxed{{6}}\n\n{correction}" for correction in CORRECTIONS]
    assert [text for text in texts if not judge(grader, "7", text).is_right] == []
    assert [text for text in texts if judge(grader, "6", text).is_right] == []


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        (r"\boxed{\text{The answer is }42}", True),
        (r"\boxed{\text{The answer is 42}}", True),
        (r"\boxed{\text{Answer: }42}", True),
        (r"\boxed{\text{答案是}42}", True),
        (r"\boxed{\text{The answer is }41}", False),
    ],
)
def test_a_box_may_say_that_it_is_the_answer(text, is_right):
    assert judge("math", "42", text).is_right is is_right


COLOURS = ("red", "green", "blue", "A mixture")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"\boxed{c}", "C"),
        (r"\boxed{\text{(c)}}", "C"),
        (r"\boxed{C. blue}", "C"),
        (r"\boxed{blue}", "C"),
        (r"\boxed{\text{Blue}}", "C"),
        ("\\boxed{\uff23}", "C"),
        ("Answer: C. B is wrong because it is green.", "C"),
        ("The answer is C, since A, B and D are not.", "C"),
        ("Answer: (C) blue, not (B) green", "C"),
        ("Answer: option c", "C"),
        ("Answer: the blue one", "C"),
        ("答案\uff1aC", "C"),
        ("故选C", "C"),
        ("正确选项是C", "C"),
        ("正确的选项为C。", "C"),
        ("应选C项", "C"),
        ("选项C正确", "C"),
        ("C选项正确", "C"),
        ("选项A错误, 选项C正确", "C"),
        ("A和B都错误, 只有C正确", "C"),
        ("不选A, 应选C", "C"),
        ("Answer: A is wrong, so C", "C"),
        ("Answer: A is incorrect; C is right.", "C"),
        ("Answer: A and B are wrong, so C", "C"),
        ("Answer: A can't be right, so C", "C"),
        ("Answer: C is right, A is wrong", "C"),
        ("Answer: A is wrong, so B or C", ""),
        ("Answer: A", "A"),
        ("Answer: A because it is red", "A"),
        ("Answer: A mixture", "D"),
        (r"\boxed{a mixture}", "D"),
        ("Answer: D. A mixture", "D"),
        (r"\boxed{A}. No, wait: \boxed{C}", "C"),
        (r"\boxed{C}. This answer is correct because A is wrong.", "C"),
        (r"\boxed{C}. The answer A is wrong.", "C"),
        (r"\boxed{A}. No, the answer is C.", "C"),
        (r"\boxed{A} or \boxed{C}", ""),
        (r"\boxed{A}, \boxed{C}", ""),
        (r"\boxed{A or C}", ""),
        ("Answer: not C", ""),
        ("Answer: neither A nor C", ""),
        ("Answer: C, not A", "C"),
        ("Answer: A or C", ""),
        ("Answer: option A or C", ""),
        ("选A或C", ""),
        ("Answer: option C, and A is only close", "C"),
        ("\\boxed{A}\n\nAnswer: (C) blue", "C"),
        ("Answer: A/C", ""),
    ],
)
def test_a_choice_is_told_by_letter_or_text_and_by_one_of_them(text, said):
    for letter in "ABCD":
        verdict = judge("choice", letter, text, choices=COLOURS)
        assert verdict.said == said
        assert verdict.is_right == (letter == said)


def test_a_letter_counts_before_a_choice_whose_text_is_a_letter():
    assert judge("choice", "A", "Answer: A", choices=("B", "A")).is_right


@pytest.mark.parametrize(
    ("said", "letter"),
    [(r"\boxed{\frac{1}{2}}", "B"), (r"Answer: $\frac12$", "B"), (r"\boxed{3\text{ cm}}", "C")],
)
def test_a_choice_is_told_by_its_formula(said, letter):
    choices = (r"$\frac13$", r"$\frac{1}{2}$", "3 cm", "$1$")
    assert judge("choice", letter, said, choices=choices).is_right


def test_choices_are_asked_with_letters():
    problem = Problem("p", "t", "Which?", "B", "choice", choices=("one", "two"))
    assert "Which?\n\n(A) one\n(B) two\n\n" in grader_of(problem).ask(problem)


@pytest.mark.parametrize(
    ("answer", "text", "is_right"),
    [
        ("204", r"Thus $\boxed{204}$.", True),
        (r"\frac{1}{2}", r"\boxed{0.5}", True),
        ("$\\frac{1}{2}$", r"\boxed{\frac12}", True),
        (r"(-\infty, 3]", r"\boxed{(-\infty,3]}", True),
        (r"\{1, 2\}", r"\boxed{\{2,1\}}", True),
        ("204", r"\boxed{205}", False),
        ("204", "I could not find it.", False),
    ],
)
def test_mathematics_is_equal_by_value(answer, text, is_right):
    assert judge("math", answer, text).is_right is is_right


def boxed(answer):
    return rf"So it is $\boxed{{{answer}}}$."


UNITS = [
    r"\Omega",
    r"\mu\text{m}",
    r"\,J",
    r"\,\mathrm{m\,s^{-1}}",
    r"\,\mathrm{m}\,\mathrm{s}^{-1}",
    " m s^{-1}",
    r"\,\text{mol}\,\text{L}^{-1}",
    r" \text{ k}\Omega",
    "μm",
    r"\,m/s",
    r"\,\text{N}\cdot\text{m}",
    r"\,\mathrm{J/(kg\cdot K)}",
]
RIGHT_IN_A_BOX = {
    "thin spaces in numbers": [
        ("5678", r"5\,678"),
        ("5678", r"5\;678"),
        ("5678", "5~678"),
        ("5678", r"5\ 678"),
        ("5678", "5 678"),
        ("5678", "5\u2009678"),
        ("5678", "5\u202f678"),
        (r"5\,678\,901", "5678901"),
        ("5,678", r"5{,}678"),
        ("0.123456", r"0.123\,456"),
        ("(5678, 9)", r"(5\,678, 9)"),
        ("5678", r"5\hspace{1mm}678"),
        ("5678", r"5\mathpunct{,}678"),
        ("5678", r"\num{5678}"),
        ("5678", "5_678"),
        ("0.1234", r"0.123\,4"),
        ("0.123456789", r"0.123\,456\,789"),
        ("1234567", r"1\,234\,567"),
        ("1234567", "1 234 567"),
        (r"\log_2 100", r"\log_2(100)"),
        (r"\log_2\,100", r"\log_{2}{100}"),
    ],
    "currency and units": [
        (r"\$7.50", "7.50"),
        (r"\$7.50", r"\$7.5"),
        ("7.5", r"\text{\$}7.50"),
        ("7.5", "€7.50"),
        ("7.5", "7.50 dollars"),
        ("USD 7.50", "7.5"),
        (r"\$\frac{1}{2}", r"\frac12"),
        ("700", "700元"),
        ("6 cm", "6"),
        ("6", r"6\,\mathrm{cm}^2"),
        ("6", "6 cm^2"),
        ("6", "6 km/h"),
        ("6", r"6~\text{m}/\text{s}"),
        ("60", r"60^\circ"),
        (r"60^\circ C", "60"),
        (r"40\%", "40"),
        (r"4.5\%", "4.5"),
        ("6", "6 miles per hour"),
        ("6", "6 people"),
        ("6", "6 kilograms"),
        ("6", r"x = 6\,\Omega"),
        ("6", r"6\text{ 厘米}"),
        (r"3n \text{ ways}", "3n"),
        ("3t", "3t"),
        ("2mn", "2nm"),
        ("6", "6m"),
        *[pair for unit in UNITS for pair in (("12", f"12{unit}"), (f"12{unit}", "12"))],
    ],
    "one quantity in two units": [
        (r"5\text{ m}", r"500\text{ cm}"),
        (r"1.5\text{ hours}", r"90\text{ minutes}"),
        (r"2\text{ ft}", r"24\text{ inches}"),
        (r"7\text{ cm}^2", r"700\text{ mm}^2"),
        (r"36\text{ km/h}", r"10\text{ m/s}"),
        (r"3\text{ mph}", r"3\text{ miles per hour}"),
        (r"7\text{ square meters}", r"7\text{ m}^2"),
        (r"\$5", r"500\text{ cents}"),
        (r"5\text{ dollars}", r"\$5"),
        (r"60^\circ", r"\frac{\pi}{3}"),
        (r"60^\circ", r"\pi/3 \text{ rad}"),
        (r"\frac{\pi}{4}", r"45^\circ"),
        (r"30^\circ", r"30\text{ degrees}"),
    ],
    "fonts around colours": [
        ("42", r"\mathbf{\color{red}{42}}"),
        ("42", r"\mathbf{\textcolor{red}{42}}"),
        ("42", r"\bold{42}"),
        (r"\mathbf{\color{red}{42}}", "42"),
        (r"\boldsymbol{42}", "42"),
    ],
    "ways to write a set, a vector and a base": [
        (r"(-\infty,3]", r"x\le 3"),
        (r"(2,5)", "2<x<5"),
        (r"x\le 3", r"(-\infty,3]"),
        (r"\langle 1,2\rangle", "(1,2)"),
        (r"\langle 1,2,3\rangle", r"\left\langle 1,2,3\right\rangle"),
        ("11111_2", "31_{10}"),
    ],
    "symbols in another spelling": [
        (r"\emptyset", r"\varnothing"),
        (r"\varnothing", "∅"),
        (r"\emptyset", r"\{\}"),
        (r"\emptyset", r"\{ \}"),
        (r"\mathbb{R}", r"\mathbb R"),
        (r"\mathbb{Z}", r"\Z"),
        ("\u211d", r"\mathbb{R}"),
        (r"\ln 2", r"\mathrm{ln}\,2"),
        (r"\infty", r"+\infty"),
        (r"{10\choose 3}", "120"),
        ("7", r"7 \pmod{10}"),
        ("e^{12}-3", r"\mathrm{e}^{12}-3"),
        (r"3\pi i", r"3\pi\mathrm{i}"),
        (r"3\sqrt{13}", "3√13"),
        (r"(-\infty,3]", "(-∞,3]"),
        ("x^2", "x²"),
        (r"\frac12", "½"),
        ("-7", "\u22127"),
    ],
    "large and small numbers": [
        (r"\frac{1}{3^{50}}", "3^{-50}"),
        (r"1-\frac{1}{2^{100}}", r"\frac{2^{100}-1}{2^{100}}"),
        ("100!", r"100 \cdot 99!"),
        (r"\binom{100}{50}", r"\frac{100!}{50!50!}"),
        ("1000000!", "1000000!"),
        ("10^{10^{10}}", "10^{10^{10}}"),
        (r"\sqrt{2}^{200}", "2^{100}"),
        (r"1.2\times10^{-10}", "0.00000000012"),
        (r"\frac{\pi}{4}", "0.785398"),
    ],
    "periods of decimals": [
        (r"\frac13", r"0.\overline{3}"),
        (r"0.\overline{3}", r"\frac13"),
        (r"\frac16", r"0.1\overline{6}"),
        (r"\frac13", r"0.\dot{3}"),
        (r"\frac13", r"0.\bar3"),
        (r"\frac13", "0.(3)"),
        (r"\frac13", "0.3\u0305"),
        (r"\frac{41}{333}", r"0.\dot{1}2\dot{3}"),
        (r"\frac{13}{6}", r"2.1\overline 6"),
        (r"-\frac13", r"-0.\overline{3}"),
        ("1", r"0.\overline{9}"),
        (r"\frac19", r"0.\overline{3}^2"),
        (r"0.\overline{3} \text{ m}", r"\frac13"),
        (r"33.\overline{3}\%", r"33\frac{1}{3}\%"),
    ],
    "degrees": [
        (r"\frac12", r"\sin 30^\circ"),
        (r"\sin 30^\circ", r"\frac12"),
        (r"\frac12", r"\cos(60^{\circ})"),
        ("1", r"\tan 45°"),
        (r"\frac14", r"\sin^2 30^\circ"),
        (r"4\cos 20^\circ", r"4\sin 70^\circ"),
        (r"\sin 2", r"\sin 2"),
    ],
    "halves of the line": [
        (r"(0,\infty)", r"\mathbb{R}^+"),
        (r"\mathbb{R}^{+}", r"(0,+\infty)"),
        (r"(-\infty,0)", r"\R^-"),
        (r"[0,\infty)", r"\mathbb{R}_{\ge 0}"),
    ],
    "powers of ten": [
        (r"6.02\times10^{23}", "602000000000000000000000"),
        ("602000000000000000000000", r"6.02\cdot10^{23}"),
        (r"6.02\times10^{23}", "6.02e+23"),
        (r"1.5\times10^{-9}", "1.5e-9"),
        (r"1.5\times10^{-9}", "1.5 x 10^-9"),
        ("1.5e-9", r"1.5\times10^{-9}"),
        (r"1.5\times10^{-9}", r"\frac{3}{2\cdot10^9}"),
        ("0.002", "2e-3"),
        ("1e-9", "10^{-9}"),
        ("2e-3", "-3+2e"),
        (r"2^{3}\times10^{4}", "80000"),
        (r"1.2\times10^{500}", r"12\times10^{499}"),
        (r"3\times10^8\ \text{m s}^{-1}", "300000000"),
    ],
    "differences too small for 15 digits": [
        (r"\ln(1+10^{-30})", r"\ln\frac{10^{30}+1}{10^{30}}"),
        (r"\ln(1+10^{-30})", r"-\ln(1-\frac{1}{10^{30}+1})"),
        (r"\ln(10^{3000})", r"3000\ln 10"),
        (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"),
        (r"\cos\frac{\pi}{5}", r"\frac{1+\sqrt5}{4}"),
    ],
    "other languages": [
        ("星期五", r"\text{星期五}"),
        ("\uff13", "3"),
        ("3.5", "\uff13\uff0e\uff15"),
        ("Friday", r"\text{friday}"),
    ],
    "bases": [
        ("1011_2", "1011_{2}"),
        ("1011_2", r"1011_{\text{two}}"),
        ("1011_2", "1011"),
        ("1011_2", r"(1011)_2"),
        ("1011_2", "1011₂"),
        (r"1\,0110_2", "10110_2"),
        ("B7_{16}", r"\text{B7}_{16}"),
        ("11", "11_{10}"),
        ("321_4", r"\overline{321}_4"),
        ("321_4", r"321 \text{ in base } 4"),
        ("321_4", r"321_\text{base 4}"),
        ("a_2", "a_2"),
    ],
    "what is written around": [
        ("58", "58."),
        ("58", "58。"),
        ("58", r"\color{blue}58"),
        ("58", r"{\color{blue}58}"),
        ("58", r"\textcolor{blue}{58}"),
        ("58", r"\color[rgb]{1,0,0}58"),
        ("58", r"\colorbox{yellow}{$58$}"),
        ("58", r"\mathbf{58}"),
        ("58", r"\bm{58}"),
        ("58", r"\text{ 58 }"),
        ("58", "**58**"),
        ("58", r"\displaystyle 58"),
        ("x+1", r"\color{red}{x+1}"),
        ("58", r"\boxed{58}"),
        ("58", r"\mathbin{58}"),
        ("58", r"\texttt{58}"),
        ("58", r"\hbox{58}"),
        ("58", r"\bbox[yellow]{58}"),
        ("58", r"\fcolorbox{red}{white}{58}"),
        ("58", r"\mathcolor{red}{58}"),
        ("58", r"~58\quad"),
    ],
    "complex numbers": [
        ("9-2i", "9.0-2.0i"),
        ("9-2i", "-2.0i+9"),
        ("0.5+1.5i", r"\frac{1}{2}+\frac{3i}{2}"),
        (r"\frac13+2i", "0.333333+2i"),
        ("i", "1.0i"),
    ],
}
WRONG_IN_A_BOX = [
    ("5679", r"5\,678"),
    (r"\$7.50", r"\$7.51"),
    (r"\emptyset", r"\{0\}"),
    ("e^{12}-3", r"\mathrm{e}^{12}+3"),
    (r"\frac{1}{2^{79}}", r"\frac{1}{2^{78}}"),
    (r"\{2^{-79},1\}", r"\{2^{-78},1\}"),
    (r"\frac{3^{900}+1}{2\cdot 3^{901}}", r"\frac{1}{2 \cdot 3^{901}}"),
    (r"\frac{3^{900}+1}{2\cdot 3^{901}}", r"\frac{1}{6}"),
    (r"1-\frac{1}{2^{100}}", "1"),
    ("7^{100}-1", "7^{100}"),
    ("50!", "50!+1"),
    (r"\frac{1}{50!}", r"\frac{1}{49!}"),
    (r"\binom{100}{50}", r"\binom{100}{49}"),
    ("1000000!", "3"),
    ("10^{10^{10}}", "10^{10^{9}}"),
    ("10^{10000}", "10^{10000}+1"),
    ("10^{-10000}", "10^{-10001}"),
    ("(10^8)!", "(10^8)!+1"),
    ("0.00000000012", "0.00000000013"),
    ("星期五", r"\text{星期六}"),
    ("1011_2", "1011_3"),
    ("1011_2", "1010_2"),
    ("1011_2", "11"),
    ("12_5, 13_5", "12_5, 13_6"),
    ("a_2", "a_3"),
    ("58", r"\color{blue}59"),
    ("58", "58!"),
    ("3t", "3"),
    ("3", "3t"),
    ("3t", "3s"),
    ("a+2d", "a+2c"),
    (r"n \text{ even}", r"n \text{ odd}"),
    ("east", r"\text{seat}"),
    (r"\log_2 100", r"\log_2 101"),
    ("5678", "5 6 7 8"),
    (r"\frac12", r"\sin 31^\circ"),
    (r"\frac12", r"\sin 30"),
    (r"2\sin 10^\circ", r"2\sin 11^\circ"),
    (r"\mathbb{R}^+", r"[0,\infty)"),
    (r"\mathbb{R}^+", r"\mathbb{R}"),
    ("AB", r"\text{BA}"),
    (r"\text{AB}", "BA"),
    *[(f"12{unit}", f"13{unit}") for unit in UNITS],
    (r"12\,J", r"12\,W"),
    ("6 km", "6 m"),
    (r"2\text{ hours}", r"2\text{ minutes}"),
    (r"1.5\text{ hours}", r"1.5\text{ min}"),
    (r"30\text{ seconds}", r"30\text{ minutes}"),
    (r"2\text{ days}", r"2\text{ weeks}"),
    (r"5\text{ inches}", r"5\text{ feet}"),
    (r"5\text{ dollars}", r"5\text{ cents}"),
    (r"\$5", r"5\text{ cents}"),
    (r"3\text{ liters}", r"3\text{ gallons}"),
    (r"3\text{ mph}", r"3\text{ km/h}"),
    (r"7\text{ cm}^2", r"7\text{ cm}^3"),
    (r"7\text{ meters}", r"7\text{ cm}"),
    (r"7\text{ meters}", r"7\text{ seconds}"),
    (r"60^\circ", r"\frac{\pi}{4}"),
    (r"(-\infty,3]", r"x< 3"),
    (r"\langle 1,2\rangle", "(2,1)"),
    ("11111_2", "30_{10}"),
    ("", ""),
    ("12", r"12\,x"),
    (r"3\mu", "3"),
    (r"0.\overline{3}", r"0.\overline{4}"),
    (r"0.\overline{3}", "0.333"),
    (r"0.1\overline{6}", r"0.\overline{16}"),
    (r"\frac16", "0.1(6)"),
    (r"\overline{z}+1", "z+1"),
    (r"6.02\times10^{23}", r"6.03\times10^{23}"),
    (r"1.5\times10^{-9}", "1.5e-8"),
    ("2e-3", "0.002"),
    (r"2^{3}\times10^{4}", "24000"),
    (r"\ln(1+10^{-30})", r"\ln(1+10^{-31})"),
    (r"\ln(1+10^{-20})", r"\ln(1+10^{-21})"),
    (r"\ln(1+2^{-100})", r"\ln(1+2^{-101})"),
    (r"\{\ln(1+10^{-30}), 2\}", r"\{\ln(1+10^{-31}), 2\}"),
    (r"(\ln(1+10^{-30}), 2)", r"(\ln(1+10^{-31}), 2)"),
    (r"\infty", r"-\infty"),
    (r"\infty", "5"),
    ("e^{-90}", "e^{-91}"),
    (r"\emptyset", r"\{\emptyset\}"),
    ("321_4", r"321 \text{ in base } 5"),
    ("9-2i", "9.0+2.0i"),
    ("3+4i", "3.0+4.1i"),
]


@pytest.mark.parametrize("kind", RIGHT_IN_A_BOX)
def test_one_value_in_two_spellings_is_one_answer(kind):
    pairs = RIGHT_IN_A_BOX[kind]
    assert [pair for pair in pairs if not judge("math", pair[0], boxed(pair[1])).is_right] == []


def test_other_values_are_wrong_however_alike_they_look():
    assert [pair for pair in WRONG_IN_A_BOX if judge("math", pair[0], boxed(pair[1])).is_right] == []


@pytest.mark.parametrize(
    ("answer", "text", "is_right"),
    [
        ("58", r"first \boxed{57}, no, that is wrong: \boxed{58}", True),
        ("57", r"first \boxed{57}, no, that is wrong: \boxed{58}", False),
        ("58", r"\boxed{57} or \boxed{58}", False),
        ("5,8", r"\boxed{5} and $x = \boxed{8}$", True),
        ("8", r"\boxed{5} and $x = \boxed{8}$", False),
        ("58", r"\boxed{58}, as I found before: \boxed{58}", True),
        ("58", r"\boxed{58} \boxed{}", True),
        ("58", r"\boxed 58", True),
        ("58", "答案\uff1a58", True),
        ("58", "所以答案是 **58**。", True),
        ("星期五", "答案\uff1a星期五", True),
        ("59", "答案\uff1a58", False),
        *[("58", f"所以答案{verb}58。", True) for verb in ("应为", "等于", "就是", "应该是", "即为")],
        ("x+1", "Answer: x+1", True),
        ("5678", r"The answer is 5\,678.", True),
        ("58", "<answer>58</answer>", True),
        ("58", "<answer>59</answer>", False),
        ("58", "", False),
    ],
)
def test_mathematics_finds_the_answer_that_is_meant(answer, text, is_right):
    assert judge("math", answer, text).is_right is is_right


def test_mathematics_that_takes_too_long_is_not_judged(monkeypatch):
    limited = Limited("sgl_dynts.tasks.mathematics:judge", seconds=1)
    monkeypatch.setattr(graders, "_mathematics", limited)
    half = r"\binom{10^9}{5 \cdot 10^8"
    for gold, said in ((half + "}", half + "+1}"), ("9^{9^{9^{9}}}", "3")):
        verdict = judge("math", gold, boxed(said))
        assert (verdict.is_right, verdict.is_judged) == (False, False)
    verdict = judge("math", "2", boxed("2"))
    assert (verdict.is_right, verdict.is_judged) == (True, True)
    limited.close()


ADD = {
    "question": 'def add(a, b):\n    """Add."""',
    "tests": "def check(f):\n    assert f(1, 2) == 3\n    assert f(0, 0) == 0",
    "entry_point": "add",
}


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("Here:\n```python\ndef add(a, b):\n    return a + b\n```", True),
        ("```py\nadd = 1\n```\nno:\n```\ndef add(a, b): return b + a\n```", True),
        ("```python\ndef add(a, b):\n    return a - b\n```", False),
        ("```python\nimport sys\nsys.exit(0)\n```", False),
        ("I cannot.", False),
        ("```python3\ndef add(a, b): return a + b\n```", True),
        ("```PYTHON\ndef add(a, b): return a + b\n```", True),
        ("``` py\ndef add(a, b): return a + b\n```", True),
        ("```{python}\ndef add(a, b): return a + b\n```", True),
        ("~~~python\ndef add(a, b): return a + b\n~~~", True),
        ("````\ndef add(a, b): return a + b\n````", True),
        ("```python\r\ndef add(a, b):\r\n    return a + b\r\n```\r\n", True),
        ("1. So:\n   ```python\n   def add(a, b):\n       return a + b\n   ```", True),
        ("```python\ndef add(a, b): return a + b", True),
        ("```python\nfrom __future__ import annotations\ndef add(a, b): return a + b\n```", True),
        ("```python\ndef add(a, b): return a + b\n```\nIt prints\n```\n3\n```", True),
        ("```python\ndef add(a, b): return a + b\n```\nTry it:\n```python\nadd(1, 2)\n```", True),
        (
            "```python\ndef add(a, b): return a + b\n```\nno:\n```python\ndef add(a, b): return 3\n```",
            False,
        ),
        ("```python\nhalf = '\ud83d'\ndef add(a, b): return a + b\n```", True),
        ("    return a + b\n", True),
        ("```python\n    c = a\n    return c + b\n```", True),
        ("    return a - b\n", False),
        ("So:\n\ndef add(a, b):\n    return a + b", True),
        ("\ufeff```python\n\ufeffdef add(a, b): return a + b\n```", True),
        ("```python\ndef add(a, b): return a + b\nif __name__ == '__main__': exit(1)\n```", True),
        (
            "```python\nfrom dataclasses import dataclass\n@dataclass\nclass Pair:\n    a: 'int'\n"
            "def add(a, b): return Pair(a).a + b\n```",
            True,
        ),
        ("> So:\n> ```python\n> def add(a, b):\n>     return a + b\n> ```\n> Done.", True),
        ("> > ```python\n> > def add(a, b):\n> >     return a + b\n> > ```", True),
        ("> ```python\n> def add(a, b):\n>     return a - b\n> ```", False),
        (
            "> ```python\n> def add(a, b):\n>     '''\n>     >>> add(1, 2)\n>     '''\n"
            ">     return a + b\n> ```",
            True,
        ),
        (
            "```python\ndef add(a, b):\n    x = '''\n```\nno\n```\n'''\n    return a + b\n```\nIt works.",
            True,
        ),
        (
            '```python\ndef add(a, b):\n    """It\'s "a" sum.\n    ```\n    >>> add(1, 2)\n    ```\n'
            '    """\n    return a + b\n```\nIt works.',
            True,
        ),
        ("```python\n''' open\n```\nno:\n```python\ndef add(a, b): return a + b\n```", True),
        ("```python\n# it's, '''\ndef add(a, b): return a + b  # \"\"\"\n```\nDone.", True),
        ("<pre><code>\ndef add(a, b):\n    return a + b\n</code></pre>", True),
        (
            '<pre><code class="language-python">def add(a, b):\n'
            "    return a + b if 1 &lt; 2 else 0</code></pre>",
            True,
        ),
        ("```python\n# one\x0c\u2028 line\ndef add(a, b): return a + b\n```", True),
    ],
)
def test_a_program_must_pass_its_tests(text, is_right):
    assert judge("python", "tests", text, **ADD).is_right is is_right


PIECES = [
    " ",
    ".",
    "~",
    "\n",
    "1 ",
    "1_",
    "$",
    "\\quad",
    "\\hspace{1}",
    "\\pmod{1}",
    "\\text{ ",
    "\\boxed{",
    "A or ",
    "((",
    "```\n",
    "'''\n```\n",
    '\n> ```python\n> "',
    "<pre><code>",
    " is wrong, A",
    "\\boxed{1} answer is ",
]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("grader", ["words", "exact", "choice", "python"])
def test_a_model_that_repeats_itself_is_judged_in_no_time(grader, piece):
    text = f"Answer: 1{piece * (60_000 // len(piece))}x"
    started = time.process_time()
    assert not judge(grader, "B", text, choices=("red", r"$\frac12$"), **ADD).is_right
    assert time.process_time() - started < 8  # of its own work, whatever else runs


def test_a_program_that_takes_too_much_memory_ends():
    assert not runs("x = bytearray(1 << 34)")


def test_a_program_that_prints_without_end_ends_and_is_not_kept_in_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not runs("for _ in range(400): print('x' * (1 << 20))")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kilobytes
    assert runs("print('x' * (1 << 20))")


def test_a_grader_that_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="problem p: grader='vibes' is unknown"):
        grader_of(Problem("p", "t", "?", "!", "vibes"))


def test_every_question_is_asked_with_its_own_words():
    for name in GRADERS:
        assert "What?" in GRADERS[name].ask(Problem("p", "t", "What?", "!", name))


def test_mathematics_without_its_library_is_refused_before_a_model_is_asked(monkeypatch):
    monkeypatch.setattr(graders, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="problem p: grader='math' needs math-verify"):
        graders.check_graders([Problem("p", "t", "?", "1", "math")], run_programs=False)


def test_a_problem_without_an_answer_is_met_by_none():
    assert not judge("choice", "", "no idea").is_right
    assert not judge("math", "", r"\boxed{}").is_right
