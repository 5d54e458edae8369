// SPDX-License-Identifier: MIT
#include "mlx_flash/engine.h"

#include "engine/session.h"

namespace mlx_flash {

Engine::Engine() : impl_(std::make_unique<Impl>()) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::open(const Config& config) {
  std::unique_ptr<Engine> engine(new Engine());
  FLASH_ASSIGN_OR_RETURN(engine->impl_->core, Core::open(config));
  engine->impl_->plan = engine->impl_->core->summary();
  return engine;
}

Result<PlanSummary> Engine::plan_only(const Config& config) {
  return Core::plan_only(config);
}

std::unique_ptr<Session> Engine::new_session() {
  return std::unique_ptr<Session>(
      new Session(std::make_unique<Session::Impl>(*impl_->core)));
}

const Text& Engine::text() const {
  return impl_->core->text();
}
const PlanSummary& Engine::plan() const {
  impl_->plan = impl_->core->summary();
  return impl_->plan;
}
StreamCounters Engine::counters() const {
  return impl_->core->counters();
}
int Engine::threads() const {
  return impl_->core->threads();
}
size_t Engine::vocab_size() const {
  return impl_->core->vocab_size();
}

Kernels Engine::kernels() const {
  return impl_->core->stock() ? Kernels::kStock : Kernels::kFast;
}

const std::string& Engine::model_type() const {
  return impl_->core->model_type();
}

Status Engine::set_ram(uint64_t ram_bytes) {
  FLASH_RETURN_IF_ERROR(impl_->core->set_ram(ram_bytes));
  impl_->plan = impl_->core->summary();
  return Status();
}

void Engine::set_limit(uint64_t ram_bytes) {
  impl_->core->request_ram(ram_bytes);
}

Result<uint64_t> Engine::write_trace(const std::string& path) const {
  return impl_->core->write_trace(path);
}

}  // namespace mlx_flash
