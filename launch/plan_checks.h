// SPDX-License-Identifier: Apache-2.0
//
// The rules of parallel layouts, for parallel_plan.h: what is wrong with one,
// and which is the nearest that works.

#ifndef CUBIT_LAUNCH_PLAN_CHECKS_H_
#define CUBIT_LAUNCH_PLAN_CHECKS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#include "launch/run.pb.h"
#include "models/model_config.h"
#include "parallel/pipeline_schedule.h"

namespace cubit {

// What a layout is asked to be.
struct LayoutRequest {
  int64_t world_size = 1;
  int64_t tp_size = 1;
  int64_t cp_size = 1;
  int64_t pp_size = 1;
  RunConfig::CpMethod::Word cp_method = RunConfig::CpMethod::auto_;
  RunConfig::PipelineSchedule::Word schedule =
      RunConfig::PipelineSchedule::one_f_one_b;
  int64_t micro_batch_size = 1;
  int64_t global_batch_size = 1;
  bool gpu = false;

  // 0 if the sizes do not divide the world.
  int64_t dp_size() const;
  int num_chunks() const;  // per stage
  PipelineSchedule pipeline_schedule() const;
};

LayoutRequest RequestOf(const RunConfig& config, int world_size,
                        absl::string_view device_kind);

// A line for each rule that `request` breaks: what was found, what is needed.
std::vector<std::string> LayoutFaults(const LayoutRequest& request,
                                      const ModelConfig& model);

// The flags that turn `request` into the nearest layout without faults on as
// many ranks, " "-separated; "" if there is none.
std::string NearestLayout(const LayoutRequest& request,
                          const ModelConfig& model);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_PLAN_CHECKS_H_
