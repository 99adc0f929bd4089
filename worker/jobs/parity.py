"""How the answers to a job's test pictures compare with what its test loop computed: a certificate."""

from datetime import datetime

from pydantic import BaseModel, Field


class Parity(BaseModel):
    pictures: int = Field(description="Test pictures that went both ways; of a large set some, evenly spaced")
    epoch: int
    sha256: str = Field(description="Of the checkpoint")
    largest_difference: float | None = Field(
        description="Of any output of any picture: what `/predict` computes from its PNG against the test loop's; null "
        "when one of the two is not finite"
    )
    largest_output: float = Field(description="The largest absolute output, to compare the difference with")
    tolerance: float = Field(description="What the difference may be")
    agree: float | None = Field(description="Share of pictures for which both find the same class; null for numbers")
    accuracy: float | None = Field(description="0 to 1, of the answers; null for numbers")
    loop_accuracy: float | None = Field(description="0 to 1, of the test loop, computed anew for the same pictures")
    recorded_accuracy: float | None = Field(description="0 to 1, as the training recorded it for all test pictures")
    mae: float | None = Field(description="Mean absolute error of the answers, averaged over targets; null for classes")
    loop_mae: float | None = Field(description="Of the test loop, computed anew for the same pictures")
    recorded_mae: float | None = Field(description="As the training recorded it for all test pictures")
    passed: bool = Field(
        description="The difference is within the tolerance; of a thousand pictures one may change its class by that "
        "(or two of a small set); and where all went both ways, the recorded number is met as closely"
    )
    precision: str = Field(description="Of the job")
    device: str = Field(description="Where both were computed: `cpu` or `cuda`")
    seconds: float
    made_at: datetime
