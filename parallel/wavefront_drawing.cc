// SPDX-License-Identifier: Apache-2.0

#include "parallel/wavefront_drawing.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace cubit {
namespace {

constexpr double kWidth = 1000;  // of the lanes
constexpr double kLeft = 70;
constexpr double kTop = 70;
constexpr double kLaneHeight = 34;
constexpr double kLaneGap = 10;
constexpr double kCharacterWidth = 7;

// Distinct in hue and in lightness, dark text on all of them.
constexpr std::array<const char*, kNumWavefrontActionKinds> kColours = {
    "#e8743b",  // solve
    "#5b9bd5",  // update
    "#c9dcc0",  // attend
    "#c9dcc0",  // attend_backward
    "#e8743b",  // adjoint_solve
    "#5b9bd5",  // adjoint_update
    "#f2d98d"   // score_gradients
};

const char* ColourOf(WavefrontActionKind kind) {
  return kColours[static_cast<size_t>(kind)];
}

std::string Escaped(absl::string_view text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
}

void AppendText(double x, double y, absl::string_view anchor,
                absl::string_view text, std::string* svg) {
  absl::StrAppendFormat(svg,
                        "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s"
                        "</text>\n",
                        x, y, anchor, Escaped(text));
}

void AppendBox(const WavefrontSpan& span, double begin, double scale,
               std::string* svg) {
  const double x = kLeft + (span.start - begin) * scale;
  const double width = (span.end - span.start) * scale;
  const double y = kTop + span.rank * (kLaneHeight + kLaneGap);
  absl::StrAppendFormat(
      svg,
      "<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%.0f\" fill=\"%s\" "
      "stroke=\"#ffffff\" stroke-width=\"0.5\"><title>%s, %.6g to %.6g"
      "</title></rect>\n",
      x, y, std::max(width, 0.1), kLaneHeight, ColourOf(span.action.kind),
      Escaped(span.action.ToString()), span.start, span.end);
  const std::string label =
      span.action.diagonal()
          ? absl::StrCat(span.action.rows)
          : absl::StrCat(span.action.rows, "<", span.action.columns);
  if (kCharacterWidth * static_cast<double>(label.size()) < width) {
    AppendText(x + width / 2, y + kLaneHeight / 2 + 4, "middle", label, svg);
  }
}

// The kinds that occur, in a row above the lanes.
void AppendLegend(const std::vector<WavefrontSpan>& spans, std::string* svg) {
  std::array<bool, kNumWavefrontActionKinds> occurs = {};
  for (const WavefrontSpan& span : spans) {
    occurs[static_cast<size_t>(span.action.kind)] = true;
  }
  double x = kLeft;
  for (int k = 0; k < kNumWavefrontActionKinds; ++k) {
    if (!occurs[static_cast<size_t>(k)]) continue;
    const auto kind = static_cast<WavefrontActionKind>(k);
    absl::StrAppendFormat(svg,
                          "<rect x=\"%.1f\" y=\"38\" width=\"14\" "
                          "height=\"14\" fill=\"%s\"/>\n",
                          x, ColourOf(kind));
    AppendText(x + 20, 49, "start", Name(kind), svg);
    x += 45 + 7 * static_cast<double>(Name(kind).size());
  }
}

}  // namespace

std::string DrawWavefront(const std::vector<WavefrontSpan>& spans,
                          absl::string_view title, absl::string_view unit) {
  double begin = spans.empty() ? 0 : spans[0].start;
  double end = spans.empty() ? 1 : spans[0].end;
  int ranks = 1;
  for (const WavefrontSpan& span : spans) {
    begin = std::min(begin, span.start);
    end = std::max(end, span.end);
    ranks = std::max(ranks, span.rank + 1);
  }
  const double scale = kWidth / std::max(end - begin, 1e-12);
  const double bottom = kTop + ranks * (kLaneHeight + kLaneGap);
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" "
      "height=\"%.0f\" font-family=\"sans-serif\" font-size=\"11\" "
      "fill=\"#222222\">\n<rect width=\"100%%\" height=\"100%%\" "
      "fill=\"#ffffff\"/>\n",
      kLeft + kWidth + 20, bottom + 30);
  AppendText(kLeft, 22, "start", title, &svg);
  AppendLegend(spans, &svg);
  for (int r = 0; r < ranks; ++r) {
    const double y = kTop + r * (kLaneHeight + kLaneGap);
    AppendText(kLeft - 8, y + kLaneHeight / 2 + 4, "end",
               absl::StrCat("rank ", r), &svg);
    absl::StrAppendFormat(&svg,
                          "<rect x=\"%.0f\" y=\"%.1f\" width=\"%.0f\" "
                          "height=\"%.0f\" fill=\"#f0f0f0\"/>\n",
                          kLeft, y, kWidth, kLaneHeight);
  }
  for (const WavefrontSpan& span : spans) {
    AppendBox(span, begin, scale, &svg);
  }
  AppendText(kLeft, bottom + 12, "start", "0", &svg);
  AppendText(kLeft + kWidth, bottom + 12, "end",
             absl::StrFormat("%.4g %s", end - begin, unit), &svg);
  return svg + "</svg>\n";
}

}  // namespace cubit
