// SPDX-License-Identifier: Apache-2.0
//
// Pictures of simulated pipelines (pipeline_simulator.h, whose DrawPipeline
// draws with characters).

#ifndef CUBIT_PARALLEL_PIPELINE_DRAWING_H_
#define CUBIT_PARALLEL_PIPELINE_DRAWING_H_

#include <string>

#include "absl/strings/string_view.h"

#include "parallel/pipeline_simulator.h"

namespace cubit {

// An SVG document: a lane for every rank, time to the right, a box for every
// forward and backward with the number of its micro-batch where there is room,
// later chunks in darker shades, `title` above and a legend with the share of
// time spent waiting. Readable on light and on dark pages.
std::string DrawPipelineSvg(const PipelineRun& run, absl::string_view title);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_PIPELINE_DRAWING_H_
