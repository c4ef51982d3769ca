// SPDX-License-Identifier: Apache-2.0
//
// Pictures of wavefront solves.

#ifndef CUBIT_PARALLEL_WAVEFRONT_DRAWING_H_
#define CUBIT_PARALLEL_WAVEFRONT_DRAWING_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#include "parallel/wavefront_trace.h"

namespace cubit {

// An SVG document: a lane for every rank, time to the right, a box for every
// span, coloured by kind and labelled with its chunks where there is room
// (rows<-columns, one number on the diagonal), and a legend. `unit` names what
// times are counted in, `title` stands above.
std::string DrawWavefront(const std::vector<WavefrontSpan>& spans,
                          absl::string_view title, absl::string_view unit);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_WAVEFRONT_DRAWING_H_
