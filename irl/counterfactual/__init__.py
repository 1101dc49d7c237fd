"""What members would choose if the programme were different: scenarios solved, rolled out and put side by side."""

from irl.counterfactual.outcomes import Answer, Question, ask, simulate

__all__ = ["Answer", "Question", "ask", "simulate"]
