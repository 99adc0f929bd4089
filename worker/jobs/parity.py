"""How the answers to a job's test pictures compare with what its test loop computed: a certificate."""

from pydantic import BaseModel, Field


class Parity(BaseModel):
    pictures: int = Field(description="Test pictures that went both ways; of a large set some, evenly spaced")
    epoch: int
    sha256: str = Field(description="Of the checkpoint")
    largest_difference: float = Field(
        description="Of any output of any picture: what `/predict` computes from its PNG against the test loop's"
    )
    largest_output: float = Field(description="The largest absolute output, to compare the difference with")
    tolerance: float = Field(description="What the difference may be")
    agree: float | None = Field(description="Share of pictures for which both find the same class; null for numbers")
    accuracy: float | None = Field(description="0 to 1, of the answers; null for numbers")
    loop_accuracy: float | None = Field(description="0 to 1, of the test loop, computed anew for the same pictures")
    recorded_accuracy: float | None = Field(description="0 to 1, as the training recorded it for all test pictures")
    passed: bool = Field(description="The difference is within the tolerance, and so are the classes")
    precision: str = Field(description="Of the job: in it both were computed")
    seconds: float
