// What the passes of a step added up of a run: kernels/tally.cu writes it, the optimizer reports it.
#pragma once

struct StepStatistics {
    double loss;
    double entropy;
};
