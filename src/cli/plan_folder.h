// SPDX-License-Identifier: MIT
#pragma once

// A folder for a plan of what is not downloaded yet, in the cache (so that it
// lies on the disk the weights will lie on). Goes when the object goes; what a
// killed process left goes with the next one.

#include <string>

#include "mlx_flash/config.h"
#include "mlx_flash/status.h"

namespace mlx_flash {

class PlanFolder {
 public:
  static Result<PlanFolder> make(const std::string& parent);
  PlanFolder(PlanFolder&& other) noexcept;
  PlanFolder& operator=(PlanFolder&&) = delete;
  ~PlanFolder();

  const std::string& path() const { return path_; }

  // How fast this disk reads, found out with a file of our own.
  Result<double> disk_speed(IoBackend io) const;

 private:
  explicit PlanFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace mlx_flash
