// SPDX-License-Identifier: Apache-2.0

#include "parallel/pipeline_drawing.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace cubit {
namespace {

constexpr double kWidth = 900;  // of the lanes
constexpr double kLeft = 64;
constexpr double kTop = 62;
constexpr double kLaneHeight = 26;
constexpr double kLaneGap = 6;
constexpr double kCharacterWidth = 6.5;
constexpr int kNumShades = 3;  // of chunks; later ones have the last

// Boxes keep their colours on any page; what stands on the page itself follows
// the reader's scheme.
constexpr char kStyle[] =
    "<style>\n"
    "text { font: 11px sans-serif; fill: #24292f }\n"
    ".lane { fill: #eceff2 }\n"
    ".box { stroke: #ffffff; stroke-width: 0.6 }\n"
    ".label { fill: #101418 }\n"
    ".f0 { fill: #8ec1ee } .f1 { fill: #5e9fdc } .f2 { fill: #4585c4 }\n"
    ".b0 { fill: #f3c37f } .b1 { fill: #e59c4a } .b2 { fill: #cc7f2b }\n"
    "@media (prefers-color-scheme: dark) {\n"
    "  text { fill: #d5dbe1 }\n"
    "  .lane { fill: #2a3037 }\n"
    "  .box { stroke: #161a1e }\n"
    "  .label { fill: #101418 }\n"
    "}\n"
    "</style>\n";

std::string Escaped(absl::string_view text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
}

std::string ClassOf(bool forward, int chunk) {
  return absl::StrCat(forward ? "f" : "b", std::min(chunk, kNumShades - 1));
}

double LaneTop(size_t rank) {
  return kTop + static_cast<double>(rank) * (kLaneHeight + kLaneGap);
}

void AppendBox(const SimulatedAction& done, size_t rank, double scale,
               std::string* svg) {
  const bool forward = done.action.kind == PipelineActionKind::kForward;
  const double x = kLeft + done.start * scale;
  const double width = (done.end - done.start) * scale;
  const double y = LaneTop(rank);
  absl::StrAppendFormat(
      svg,
      "<rect class=\"box %s\" x=\"%.2f\" y=\"%.0f\" width=\"%.2f\" "
      "height=\"%.0f\"><title>%s, %.6g to %.6g</title></rect>\n",
      ClassOf(forward, done.action.chunk), x, y, width, kLaneHeight,
      done.action.ToString(), done.start, done.end);
  const std::string label = absl::StrCat(done.action.micro_batch);
  if (kCharacterWidth * static_cast<double>(label.size()) > width) return;
  absl::StrAppendFormat(svg,
                        "<text class=\"label\" x=\"%.2f\" y=\"%.0f\" "
                        "text-anchor=\"middle\">%s</text>\n",
                        x + width / 2, y + kLaneHeight / 2 + 4, label);
}

int NumChunks(const PipelineRun& run) {
  int chunks = 1;
  for (const std::vector<SimulatedAction>& lane : run.timeline) {
    for (const SimulatedAction& done : lane) {
      chunks = std::max(chunks, done.action.chunk + 1);
    }
  }
  return chunks;
}

// "forward" and "backward", with a square for every chunk's shade.
void AppendLegend(const PipelineRun& run, std::string* svg) {
  double x = kLeft;
  const int shades = std::min(NumChunks(run), kNumShades);
  for (const bool forward : {true, false}) {
    for (int chunk = 0; chunk < shades; ++chunk) {
      absl::StrAppendFormat(svg,
                            "<rect class=\"box %s\" x=\"%.0f\" y=\"34\" "
                            "width=\"14\" height=\"14\"/>\n",
                            ClassOf(forward, chunk), x);
      x += 16;
    }
    const std::string name = forward ? "forward" : "backward";
    absl::StrAppendFormat(svg, "<text x=\"%.0f\" y=\"45\">%s%s</text>\n", x + 4,
                          name, shades > 1 ? " (chunks)" : "");
    x += 130;
  }
  absl::StrAppendFormat(svg,
                        "<text x=\"%.0f\" y=\"45\" text-anchor=\"end\">waiting "
                        "%.1f%% of the time</text>\n",
                        kLeft + kWidth, 100 * run.bubble_fraction);
}

}  // namespace

std::string DrawPipelineSvg(const PipelineRun& run, absl::string_view title) {
  const double scale = kWidth / std::max(run.makespan, 1e-12);
  const double height = LaneTop(run.timeline.size()) + 10;
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
      "width=\"%.0f\" height=\"%.0f\">\n",
      kLeft + kWidth + 16, height, kLeft + kWidth + 16, height);
  absl::StrAppend(&svg, kStyle);
  absl::StrAppendFormat(&svg, "<text x=\"%.0f\" y=\"20\">%s</text>\n", kLeft,
                        Escaped(title));
  AppendLegend(run, &svg);
  for (size_t rank = 0; rank < run.timeline.size(); ++rank) {
    const double y = LaneTop(rank);
    absl::StrAppendFormat(
        &svg,
        "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"end\">rank %d</text>\n"
        "<rect class=\"lane\" x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" "
        "height=\"%.0f\"/>\n",
        kLeft - 8, y + kLaneHeight / 2 + 4, rank, kLeft, y, kWidth,
        kLaneHeight);
    for (const SimulatedAction& done : run.timeline[rank]) {
      AppendBox(done, rank, scale, &svg);
    }
  }
  return svg + "</svg>\n";
}

}  // namespace cubit
