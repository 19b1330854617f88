package server

import (
	"errors"
	"fmt"
	"net/http"

	"countersign/appliance/adminapi"
	"countersign/appliance/parties"
	"countersign/appliance/store"
)

// invitedClient describes an open activation code as a client that is not enrolled.
func invitedClient(i store.Invitation) adminapi.Client {
	return adminapi.Client{
		Name: i.Name, Status: adminapi.StatusInvited, Roles: append([]string{}, i.Roles...), Highest: -1,
		CreatedAt: i.CreatedAt, ExpiresAt: &i.ExpiresAt,
	}
}

// invitedDevice is invitedClient for a device.
func invitedDevice(i store.Invitation) adminapi.Device {
	return adminapi.Device{
		Name: i.Name, Status: adminapi.StatusInvited, Display: i.Display, Floor: uint8(i.Floor),
		CreatedAt: i.CreatedAt, ExpiresAt: &i.ExpiresAt,
	}
}

func (s *Server) devices(r *http.Request, _ adminapi.None) ([]adminapi.Device, error) {
	all, err := s.Appliance.Parties.Devices(r.Context())
	open, openErr := s.Appliance.Enrol.Open(r.Context(), store.KindDevice)
	return append(each(all, deviceJSON), each(open, invitedDevice)...), errors.Join(err, openErr)
}

// showClient answers with a client, or with the open activation code of that name.
func (s *Server) showClient(r *http.Request, none adminapi.None) (adminapi.Client, error) {
	c, err := s.client(s.Appliance.Parties.ClientNamed)(r, none)
	if !errors.Is(err, store.ErrNotFound) {
		return c, err
	}
	i, err := s.Appliance.Enrol.OpenFor(r.Context(), store.KindClient, r.PathValue("name"))
	return invitedClient(i), err
}

// showDevice is showClient for a device.
func (s *Server) showDevice(r *http.Request, none adminapi.None) (adminapi.Device, error) {
	d, err := one(s.Appliance.Parties.DeviceNamed, deviceJSON)(r, none)
	if !errors.Is(err, store.ErrNotFound) {
		return d, err
	}
	i, err := s.Appliance.Enrol.OpenFor(r.Context(), store.KindDevice, r.PathValue("name"))
	return invitedDevice(i), err
}

// revokeClient revokes a client and withdraws its open activation code. It answers with what there was.
func (s *Server) revokeClient(r *http.Request, none adminapi.None) (adminapi.Client, error) {
	ended, err := s.Appliance.Enrol.Revoke(r.Context(), store.KindClient, r.PathValue("name"))
	if err != nil {
		return adminapi.Client{}, err
	}
	c, err := s.client(s.Appliance.Parties.ClientNamed)(r, none)
	if errors.Is(err, store.ErrNotFound) {
		c, err = invitedClient(ended), nil
		c.Status = adminapi.StatusWithdrawn
	}
	return c, err
}

// revokeDevice is revokeClient for a device.
func (s *Server) revokeDevice(r *http.Request, none adminapi.None) (adminapi.Device, error) {
	ended, err := s.Appliance.Enrol.Revoke(r.Context(), store.KindDevice, r.PathValue("name"))
	if err != nil {
		return adminapi.Device{}, err
	}
	d, err := one(s.Appliance.Parties.DeviceNamed, deviceJSON)(r, none)
	if errors.Is(err, store.ErrNotFound) {
		d, err = invitedDevice(ended), nil
		d.Status = adminapi.StatusWithdrawn
	}
	return d, err
}

// enrolled answers as h does. Of a name that only an open activation code has, it says so.
func enrolled[Req, Res any](s *Server, kind store.Kind, h handler[Req, Res]) handler[Req, Res] {
	return func(r *http.Request, body Req) (Res, error) {
		res, err := h(r, body)
		return res, s.notEnrolled(r, kind, err)
	}
}

// notEnrolled returns err, or for a name that only an open activation code has, an error that says so.
func (s *Server) notEnrolled(r *http.Request, kind store.Kind, err error) error {
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if _, openErr := s.Appliance.Enrol.OpenFor(r.Context(), kind, r.PathValue("name")); openErr != nil {
		return err
	}
	return parties.Missing(fmt.Sprintf("%s %q is not enrolled yet; %s revoke withdraws its activation code", kind, r.PathValue("name"), kind))
}
