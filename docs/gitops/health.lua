-- Argo CD's health of a Plan, Application, DatabaseServer, Pool or Tenant: kstatus' rules, and
-- Suspended for what somebody stopped on purpose.
local metadata, status = obj.metadata or {}, obj.status or {}
local function condition(kind)
  for _, found in ipairs(status.conditions or {}) do
    if found.type == kind then return found end
  end
  return {}
end
local function health(state, message)
  return {status = state, message = message or ""}
end
local ready, stalled, reconciling = condition("Ready"), condition("Stalled"), condition("Reconciling")
if metadata.deletionTimestamp ~= nil then
  return health("Progressing", ready.message or "it is being deleted")
end
if (metadata.annotations or {})["tenantry.io/paused"] == "true" then
  return health("Suspended", "paused by annotation tenantry.io/paused: the operator writes nothing for it")
end
if status.observedGeneration == nil or status.observedGeneration ~= metadata.generation then
  return health("Progressing", "the operator has not seen this generation yet")
end
if stalled.status == "True" then
  return health("Degraded", stalled.message)
end
if reconciling.status == "True" then
  return health("Progressing", reconciling.message)
end
if ready.status == "True" then
  return health("Healthy", ready.message)
end
if ready.status == "False" and ready.reason == "Suspended" then
  return health("Suspended", ready.message)
end
if ready.status == "False" then
  return health("Degraded", ready.message)
end
return health("Progressing", ready.message or "the operator has not judged it yet")
